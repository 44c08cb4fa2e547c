"""Train on prices of your own, push the checkpoint to the Hugging Face Hub, load it from there, and forecast with it:

hf auth login                                                # or HF_TOKEN; a token that may write
python examples/train_push_load.py prices.csv owner/name --preset tiny
"""

import subprocess
import sys

import pandas as pd
from huggingface_hub import HfApi

from finjepa_model import FinJEPA
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import current_checkpoint


def main(prices: str, repo_id: str, *options: str) -> None:
    finjepa = [sys.executable, "-m", "finjepa_pipeline"]
    subprocess.run([*finjepa, "train", "--data-source", "files", "--path", prices, *options], check=True)
    checkpoint = current_checkpoint(Settings.from_env())  # a folder in FINJEPA_HOME

    # `finjepa publish --hub-repo-id owner/name` pushes what passes the champion gate, with a model card. Without the gate:
    hub = HfApi()
    hub.create_repo(repo_id, private=True, exist_ok=True)
    hub.upload_folder(repo_id=repo_id, folder_path=checkpoint, commit_message=f"FinJEPA {checkpoint.name}")

    model = FinJEPA.from_pretrained(repo_id)
    frame = pd.read_csv(prices)
    print(model.forecast(frame).volatility)
    print(model.decide(frame).weights)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
