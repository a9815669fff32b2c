"""Train a sparse diffusion model: `python train.py [PRESET] [options]`; see `--help`."""

import sys

from keras_sparse_dm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:], prog="train.py"))
