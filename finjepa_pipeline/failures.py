"""Which failures are tried again. A process that died may live the next time; an exception would only be raised again."""

import functools
import inspect
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import dagster as dg
from dagster import DagsterError, DagsterExecutionInterruptedError

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.causes import explained
from finjepa_pipeline.compute import ProcessDiedError
from finjepa_pipeline.interrupts import asked

P = ParamSpec("P")
R = TypeVar("R")
CRASH_RETRIES = dg.RetryPolicy(max_retries=2, delay=15, backoff=dg.Backoff.EXPONENTIAL)


def final(function: Callable[P, R]) -> Callable[P, R]:
    """An asset function whose exceptions end its step, whatever the retry policy of the job says; the policy is then left
    with crashes: a step whose process was killed, or ran out of memory. The step ends with its run: see `_end_with_run`.

    Goes directly over the function, below `@dg.asset`.
    """

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            _end_with_run()
            try:
                yield from function(*args, **kwargs)
            except _FINAL as error:
                raise _failure(error) from error

        return generator  # type: ignore[return-value]

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        _end_with_run()
        try:
            return function(*args, **kwargs)
        except _FINAL as error:
            raise _failure(error) from error

    return plain


@functools.cache
def _end_with_run() -> None:
    """Let this process end when the one that runs the steps was killed: nobody waits for this step any more, and the run that
    is started in its place would find the warehouse and the GPU taken. A command line runs its steps itself.
    """
    run = multiprocessing.parent_process()
    if run is None:
        return

    def watch() -> None:
        run.join()
        # what is half done is undone as after a SIGKILL; a training saves its state when its launcher is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="run-watch").start()


_FINAL = (Exception, KeyboardInterrupt, DagsterExecutionInterruptedError)


def _failure(error: BaseException) -> BaseException:
    if asked.is_set() or isinstance(error, KeyboardInterrupt | DagsterExecutionInterruptedError):
        return dg.Failure(description="interrupted", allow_retries=False)
    if isinstance(error, ProcessDiedError):  # a process that the step had started died, and the step with it
        return dg.RetryRequested(max_retries=CRASH_RETRIES.max_retries, seconds_to_wait=CRASH_RETRIES.delay)
    if isinstance(error, dg.Failure | dg.RetryRequested | DagsterError):
        return error
    text = str(error) if isinstance(error, FinJEPAError) else f"{type(error).__name__}: {error}"
    return dg.Failure(description=explained(error) or text, allow_retries=False)
