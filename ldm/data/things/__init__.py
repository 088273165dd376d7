"""Everyday things with names: cut-outs of free packages, composed onto photographs and captioned, at 256x256."""
