"""How names of image and video files end, in lower case: what folders are searched for.

A file that is named by itself is tried whatever its name.
"""

MEDIA_SUFFIXES = {
    "image": frozenset(".jpg .jpeg .png .webp .bmp .gif .tif .tiff".split()),
    "video": frozenset(".mp4 .webm .mkv .mov .avi .m4v .mpg .mpeg .flv .ts .wmv .3gp .ogv .gif".split()),
}
