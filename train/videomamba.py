"""Training of VideoMamba; see run_videomamba.py and `python train/videomamba.py --help`."""

import sys

from modeling_video_ma2mba.train.run_videomamba import main

if __name__ == "__main__":
    sys.exit(main())
