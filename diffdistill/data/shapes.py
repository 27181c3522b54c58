"""Refuses image shapes that other commands could not use."""

# The channels of grey and RGB images. Sheets, classifiers and exported
# pipelines accept no others.
CHANNELS = (1, 3)


def check_image_shape(shape: tuple[int, int, int], place: str) -> None:
  """Refuses images that could be trained on, but not shown or judged.

  Args:
    shape: (h, w, c).
    place: the field of the config that names the source of the images.

  Raises:
    ValueError: if images cannot be shown or judged; the message guesses the
      cause.
  """
  height, width, channels = shape
  if min(shape) < 1:
    raise ValueError(f"{place} has images of shape {shape}, without pixels")
  if channels in CHANNELS:
    return
  guess = "store 1 channel (grey) or 3 (RGB)"
  if height in CHANNELS and width not in CHANNELS:
    guess = "are channels first? store (n, h, w, c): np.moveaxis(images, 1, -1)"
  elif channels in (2, 4):
    guess = (
      "is the last channel transparency? lay the images on a background, and"
      f" {guess}"
    )
  raise ValueError(
    f"{place} has images of shape {shape}, which is (height, width, channels),"
    f" with {channels} channels; {guess}"
  )
