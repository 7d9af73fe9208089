"""A stand-in for mlflow whose process is killed."""

import os
import signal


def MlflowClient():
    os.kill(os.getpid(), signal.SIGKILL)
