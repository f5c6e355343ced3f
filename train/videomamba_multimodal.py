"""Multi-modal pre-training of VideoMamba; see run_multimodal.py and `python train/videomamba_multimodal.py --help`."""

import sys

from modeling_video_ma2mba.train.run_multimodal import main

if __name__ == "__main__":
    sys.exit(main())
