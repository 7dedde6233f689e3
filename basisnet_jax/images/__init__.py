"""Image files as pixels: find, decode, turn upright, crop, resize. NumPy, and OpenCV or else Pillow."""

MAX_PIXELS = 2**26  # in one image: 8192 x 8192, 200 MB as RGB
