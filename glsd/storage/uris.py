"""Names of files: absolute local paths, and uris of object stores.

A uri is an absolute local path, or `scheme://bucket/key?options` as pyarrow reads it (`endpoint_override=...` names an
S3 server of one's own), in which `%`, `?` and `#` of a key are percent-encoded and nothing else is.
"""

import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pyarrow.compute as pc
import pyarrow.fs

from glsd.storage.columns import Texts, mapped, one_column, parts, prefixed

_SCHEMES: Final = ("file", "s3", "gs", "gcs")
_GOOGLE_RETRY_SECONDS: Final = 30
"""Without credentials or network, `gs://` is tried again for a quarter of an hour by default, without a word."""
_SECRET_OPTION: Final = re.compile(r"[?&][^=&]*(key|secret|token|password|credential)[^=&]*=|@", re.IGNORECASE)


def is_remote(uri: str) -> bool:
    """Whether the uri is read through pyarrow."""
    return "://" in uri


def absolute(source: str | Path) -> str:
    """The uri of what a user named: checked by `check_uri`, `~` expanded, made absolute, without a slash at its end."""
    text = str(source)
    check_uri(text)
    if is_remote(text):
        location, mark, options = text.partition("?")
        return location.rstrip("/") + mark + options
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - Path.resolve would follow symlinks


def check_uri(uri: str) -> None:
    """Refuse credentials, which would be written wherever the uri is, and names that this process cannot tell apart.

    Such a name has letters that the locale reads in an encoding of its own.
    """
    if is_remote(uri):
        check_no_credentials(uri)
        if (scheme := uri.partition("://")[0]) not in _SCHEMES:
            raise ValueError(f"{scheme}:// is not known; use a local path or one of {', '.join(_SCHEMES)}")
    elif not uri.isascii() and (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise ValueError(
            f"{uri!a} is read as {encoding} by the locale of this process, and file names are UTF-8 here; set "
            "PYTHONUTF8=1 in the environment of all processes"
        )


def check_uris(uris: Texts) -> int | None:
    """The first row that `check_uri` would refuse, if there is one."""
    is_utf8, row = sys.getfilesystemencoding() == "utf-8", 0
    for part in parts(uris):
        # Without these there is nothing to be refused, which is far sooner seen for all rows than for each.
        of_interest = pc.and_(
            pc.match_substring(part, "://"),
            pc.or_(
                pc.match_substring_regex(part, r"://[^/]*[:@]|[?@]"),
                pc.invert(pc.match_substring_regex(part, f"^({'|'.join(_SCHEMES)})://")),
            ),
        )
        if not is_utf8 or pc.any(of_interest).as_py():
            for number, uri in enumerate(part.to_pylist(), row):
                try:
                    check_uri(uri)
                except ValueError:
                    return number
        row += len(part)
    return None


def check_no_credentials(text: str) -> None:
    """Refuse a uri, or an argument with a uri at its end, in which there are credentials, and do not show them."""
    before, _, rest = text.partition("://")
    scheme = re.split(r"[^a-z0-9]", before.lower())[-1]
    location, mark, options = rest.partition("?")
    authority = location.partition("/")[0]
    if scheme in ("gs", "gcs"):
        authority = authority.removeprefix("anonymous@")
    if ":" in authority or "@" in authority or _SECRET_OPTION.search(mark + options):
        raise ValueError(
            f"a URI that begins with {scheme}:// holds credentials, which would be kept in files and reports; leave "
            "them out. For s3:// set the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for gs:// "
            "Google's default credentials; a server of one's own is named by ?endpoint_override=HOST:PORT"
        )


def inner_names(uris: Texts) -> Texts:
    """Names of files below the folder that they have in common: the same wherever the folder lies."""
    names, start = outer_names(uris)
    return pc.utf8_slice_codeunits(names, start)


def outer_names(uris: Texts) -> tuple[Texts, int]:
    """Names of files as a person reads them, without a scheme, and the length of the folder that they have in common.

    Those of local files are the uris themselves, and no copy.
    """
    names = unquoted(uris)
    if pc.any(pc.match_substring(names, "://")).as_py():
        names = mapped(lambda name: name.rpartition("://")[2], names)
    extremes = pc.min_max(names).as_py().values()
    return names, os.path.commonprefix([*extremes]).rfind("/") + 1  # noqa: RUF071 - cut at a slash it is a folder


def unquote_key(uri: str) -> str:
    """A uri as a person reads it: without options, decoded."""
    return unquote(uri.partition("?")[0]) if is_remote(uri) else uri


def unquoted(uris: Texts) -> Texts:
    """The uris as a person reads them, see `unquote_key`."""
    return mapped(unquote_key, uris) if pc.any(pc.match_substring(uris, "://")).as_py() else uris


def beside(uri: str, entry: str) -> str:
    """The uri of an entry that a list at `uri` names: absolute, or relative to the list's folder."""
    if is_remote(entry):
        return entry
    if not is_remote(uri):
        return os.path.normpath(os.path.join(os.path.dirname(uri), entry))  # noqa: PTH118, PTH120 - 100k times
    location, mark, options = uri.partition("?")
    return f"{location.rpartition('/')[0]}/{quote_key(entry)}{mark}{options}"


_IRREGULAR: Final = r"//|(^|/)\.{1,2}(/|$)|/$|^$"
"""Uris, and paths that `normpath` would change."""


def all_beside(uri: str, entries: Texts) -> Texts:
    """The uris of many entries, see `beside`."""
    folder = "" if is_remote(uri) else f"{os.path.dirname(uri).rstrip('/')}/"  # noqa: PTH120

    def of_part(part: Texts) -> Texts:
        if not folder or pc.any(pc.match_substring_regex(part, _IRREGULAR)).as_py():
            return mapped(lambda entry: beside(uri, entry), part)
        return pc.if_else(pc.starts_with(part, "/"), part, prefixed(folder, part))

    if folder and not pc.any(pc.match_substring_regex(entries, f"^[^/]|{_IRREGULAR}")).as_py():
        return entries
    return one_column(map(of_part, parts(entries)))


def joined(folder: str, name: str) -> str:
    """The uri of what has this relative name in a folder."""
    if not is_remote(folder):
        return str(Path(folder) / name)
    location, mark, options = folder.partition("?")
    return f"{location.rstrip('/')}/{quote_key(name)}{mark}{options}"


def resolved(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a remote uri, which must be of a known scheme without credentials, and the path on it."""
    check_uri(uri)
    location, mark, options = uri.partition("?")
    scheme, _, rest = location.partition("://")
    authority, _, key = rest.partition("/")
    bucket = authority.rpartition("@")[2]
    return _filesystem(scheme, authority, mark + options), f"{bucket}/{unquote(key)}".rstrip("/")


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str, options: str) -> pyarrow.fs.FileSystem:
    if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in options:
        options += f"{'&' if options else '?'}retry_limit_seconds={_GOOGLE_RETRY_SECONDS}"
    return pyarrow.fs.FileSystem.from_uri(f"{scheme}://{authority or '/'}{options}")[0]


def quote_key(key: str) -> str:
    """A key as it stands in a uri."""
    return key.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
