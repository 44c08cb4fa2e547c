"""The command `finjepa`, which says what to install where only the model package is."""

import sys


def main() -> None:
    try:
        from finjepa_pipeline.cli import run  # here: the pipeline's libraries may not be installed
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("finjepa"):
            raise
        if sys.argv[1:2] == ["verify"]:
            from finjepa_model.live_record.verify import main as verify  # which needs the model package alone

            sys.exit(verify(sys.argv[2:]))
        sys.exit(
            f"finjepa: the command line needs {error.name}, which is not installed: pip install 'finjepa[pipeline]'"
        )
    except KeyboardInterrupt:  # the libraries take seconds to load
        sys.exit("finjepa: interrupted: nothing was begun")
    run()


if __name__ == "__main__":
    main()
