"""The stand-in's own tests use its fixtures."""

from .fixtures import shared_standin, standin, standin_root, standin_wheels

__all__ = ["shared_standin", "standin", "standin_root", "standin_wheels"]
