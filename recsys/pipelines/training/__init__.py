"""The training loop: from a prepared dataset and a config to a bundle. Needs torch, numpy and safetensors alone."""

from recsys.pipelines.training.result import Stopped, TrainResult
from recsys.pipelines.training.step import seed_of_step
from recsys.pipelines.training.train import train

__all__ = ["Stopped", "TrainResult", "seed_of_step", "train"]
