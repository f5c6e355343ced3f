"""Stage 2 of the paper's training; see run_stage.py and `python train/stage2.py --help`."""

import sys

from modeling_video_ma2mba.train.run_stage import main

if __name__ == "__main__":
    sys.exit(main("2"))
