"""A procedural world of rendered, captioned objects in front of photographs and painted backgrounds."""
