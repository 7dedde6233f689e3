"""Image files as pixels: find, decode, turn upright, crop, resize. NumPy, and OpenCV or else Pillow."""
