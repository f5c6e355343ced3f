"""What a Space runs. VIDEO_MA2MBA_MODEL names the model: a Hub name or a folder; "tiny" is the one that ships.

`video-ma2mba push tiny me/page --space` puts it on the Hub with the package beside it.
"""

import os

from modeling_video_ma2mba.hub_cards.space_page import launch

launch(os.environ.get("VIDEO_MA2MBA_MODEL", "tiny"))
