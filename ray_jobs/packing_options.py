"""The options of `glsd pack`, for Python and for the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PackOptions:
    """How large shards are, and where tables have images and labels."""

    shard_mib: int = 256
    """Size of a shard in MiB."""
    image_column: str = "image"
    """Parquet: column of encoded bytes, or of `{bytes, path}` structs."""
    label_column: str = "label"
    """Parquet and CSV: column of labels."""

    def check(self) -> None:
        """Refuse what is out of range."""
        if self.shard_mib < 1:
            raise ValueError(f"--shard_mib must be 1 or more, not {self.shard_mib}")
