"""Stage 1: learn shared and private latents as `vae.yaml` beside this file says, and save them with the weights.

Run `python vae_train.py [key.sub=value ...]`; the same command again resumes.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

from mandorla.__main__ import main  # noqa: E402

if __name__ == "__main__":
    main(["train", "vae", str(HERE / "vae.yaml"), *sys.argv[1:]])
