"""Bytes on local disks and object stores; this room knows no image and no run."""
