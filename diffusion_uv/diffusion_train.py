"""Stage 2: train a diffusion model on the latents of stage 1 as `diffusion.yaml` beside this file says.

Run `python diffusion_train.py [key.sub=value ...]`; the same command again resumes.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

from mandorla.__main__ import main  # noqa: E402

if __name__ == "__main__":
    main(["train", "diffusion", str(HERE / "diffusion.yaml"), *sys.argv[1:]])
