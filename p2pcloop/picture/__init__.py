"""The chunk map: a picture of an image's device, and what is known of each part of it."""
