import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS, decode
from glsd.data.index import Index, build_index
from glsd.data.regimes import subset, write_subset
from glsd.data.sources import kind_not_read
from glsd.storage.uris import unquote_key
from tests.glsd.data.encoding import encoded, jpeg, photograph, write_jpegs, write_tar
from tests.glsd.storage.google_store import google_store
from tests.glsd.storage.object_store import object_store

CONFIG = DataConfig()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(index: Index, root: Path | str) -> list[str]:
    return [index.uri(row).removeprefix(f"{root}/") for row in range(len(index))]


def labels(index: Index) -> list[str] | None:
    if index.labels is None or index.classes is None:
        return None
    return [index.classes[label] for label in index.labels.tolist()]


@contextmanager
def without_privileges() -> Iterator[None]:
    """As a user whom file permissions bind."""
    if os.geteuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that any user may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest-of-" in str(folder):  # pytest's own folders, which only their owner may enter
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    return tmp_path


# Folders


def test_a_flat_folder_has_no_labels(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data", "b.jpg", "a.JPG", "ä b.jpeg", "c.PNG")
    index = build_index(tmp_path / "data", CONFIG, cache)
    assert names(index, tmp_path / "data") == ["a.JPG", "b.jpg", "c.PNG", "ä b.jpeg"]
    assert index.labels is None
    assert index.classes is None


def test_one_folder_a_class_gives_labels_in_the_order_of_names(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data", "toad/1.jpg", "frog/2.jpg", "frog/1.jpg", "Östlicher Molch/1.jpg")
    index = build_index(tmp_path / "data", CONFIG, cache)
    assert index.classes == ["frog", "toad", "Östlicher Molch"]
    assert index.labels is not None
    assert index.labels.tolist() == [0, 0, 1, 2]
    assert labels(index) == [name.split("/")[0] for name in names(index, tmp_path / "data")]


@pytest.mark.parametrize("stray", ["stray.jpg", "frog/deeper/1.jpg"])
def test_images_at_other_depths_make_a_folder_unlabelled(tmp_path: Path, cache: Path, stray: str) -> None:
    write_jpegs(tmp_path / "data", "frog/1.jpg", "toad/1.jpg", stray)
    index = build_index(tmp_path / "data", CONFIG, cache)
    assert len(index) == 3
    assert index.labels is None


def test_rows_give_the_bytes_of_their_files(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data", *(f"{letter}.jpg" for letter in "dacb"))
    index = build_index(tmp_path / "data", CONFIG, cache)
    for row in range(len(index)):
        assert index.read(row) == Path(index.uri(row)).read_bytes()
        assert decode(index.read(row), CONFIG.max_pixels).shape == (12, 16, 3)


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data", "a.jpg", ".b.jpg", ".git/c.jpg", "README.txt", "README", "labels.csv", "Thumbs.db")
    assert names(build_index(tmp_path / "data", CONFIG, cache), tmp_path / "data") == ["a.jpg"]


def test_links_are_followed_and_circles_are_entered_once(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "data/zebra/1.jpg", "elsewhere/2.jpg", "3.jpg")
    (tmp_path / "data/antelope").symlink_to(tmp_path / "data/zebra")  # the folder goes by its own name
    (tmp_path / "data/lion").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/lion/circle").symlink_to(tmp_path / "data")
    (tmp_path / "data/lion/3.jpg").symlink_to(tmp_path / "3.jpg")
    index = build_index(tmp_path / "data", CONFIG, cache)
    assert names(index, tmp_path / "data") == ["lion/2.jpg", "lion/3.jpg", "zebra/1.jpg"]


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data", "a.jpg")
    (tmp_path / "data/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"data/gone\.jpg is a link to a file that does not exist"):
        build_index(tmp_path / "data", CONFIG, cache)


@pytest.mark.parametrize("length", [1, 3])
def test_a_circle_of_links_is_named(tmp_path: Path, cache: Path, length: int) -> None:
    write_jpegs(tmp_path / "data", "a.jpg")
    for number in range(length):
        (tmp_path / "data" / f"{number}").symlink_to(f"{(number + 1) % length}")
    assert len(build_index(tmp_path / "data", CONFIG, cache)) == 1
    with pytest.raises(ValueError, match="data/0 is a link to a file that does not exist; remove it"):
        build_index(tmp_path / "data/0", CONFIG, cache)
    (tmp_path / "list.txt").write_text("data/a.jpg\ndata/0\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: .*data/0 is not a file that exists"):
        build_index(tmp_path / "list.txt", CONFIG, cache)
    (tmp_path / "data/b.jpg").symlink_to("b.jpg")
    with pytest.raises(ValueError, match=r"data/b\.jpg is a link to a file that does not exist; remove it"):
        build_index(tmp_path / "data", CONFIG, cache)


def test_a_missing_path_is_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="data/nowhere does not exist"):
        build_index(tmp_path / "data/nowhere", CONFIG, cache)


def test_an_empty_folder_and_one_without_images_name_the_extensions(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "data").mkdir()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"data holds no image; images end in \.avif, \.bmp, .* \.webp"):
            build_index(tmp_path / "data", CONFIG, cache)
        (tmp_path / "data/notes.txt").write_text("nothing here")


OTHERS = ("a.heic", "b.HEIC", "x/c.dcm", "x/IM0001", "1.2.840.10008", ".heic", ".d.heic", ".git/e.heic")
COMPANIONS = ("labels.csv", "a.json", "a.xml", "a.cls", "README", "README.md", "LICENSE", "Thumbs.db", "mask.npy")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_of_kinds_that_are_not_read_are_counted_and_named(tmp_path: Path, cache: Path, scheme: str) -> None:
    write_jpegs(tmp_path / "data", "a.jpg", *OTHERS, *COMPANIONS)
    message = r"data also holds 5 files of kinds that are not read: \.heic 2, no suffix 2, \.dcm 1; if they are images"
    for _ in range(2):  # also when the index is there
        with pytest.warns(UserWarning, match=message):
            assert len(build_index(f"{scheme}{tmp_path}/data", CONFIG, cache)) == 1


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_of_kinds_that_are_not_read_says_so(tmp_path: Path, cache: Path, scheme: str) -> None:
    write_jpegs(tmp_path / "data", "a.heic", *COMPANIONS)
    message = r"data holds no image; .* It holds 1 file of a kind that is not read: \.heic 1; convert them"
    with pytest.raises(ValueError, match=message):
        build_index(f"{scheme}{tmp_path}/data", CONFIG, cache)


def test_no_kind_is_both_read_and_not_read() -> None:
    assert not [suffix for suffix in IMAGE_EXTENSIONS if kind_not_read(f"a{suffix}")]


def test_no_source_is_an_error(cache: Path) -> None:
    with pytest.raises(ValueError, match="no data named"):
        build_index([], CONFIG, cache)


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data", "a.jpg", "b.jpg")
    write_tar(tmp_path / "data/c.tar", {"c.jpg": jpeg()})
    with pytest.raises(ValueError, match="holds 2 images and 1 tars"):
        build_index(tmp_path / "data", CONFIG, cache)


def test_one_image_is_a_source_of_one_image(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "cat.jpg")
    assert names(build_index(str(tmp_path / "cat.jpg"), CONFIG, cache), tmp_path) == ["cat.jpg"]


def test_an_unknown_kind_of_file_names_the_known_ones(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"data\.zip is not a known kind of data; .* \.csv, .* \.tar, .* \.parquet"):
        build_index(tmp_path / "data.zip", CONFIG, cache)


def test_an_unreadable_file_is_named(open_folder: Path) -> None:
    write_jpegs(open_folder / "data", "a.jpg", "b.jpg")
    (open_folder / "data/b.jpg").chmod(0)
    with without_privileges(), pytest.raises(ValueError, match=r"data/b\.jpg cannot be read by this user \(1 of 2"):
        build_index(open_folder / "data", CONFIG, open_folder / "cache")


def test_an_unreadable_folder_is_named(open_folder: Path) -> None:
    write_jpegs(open_folder / "data", "a.jpg", "private/b.jpg")
    (open_folder / "data/private").chmod(0)
    with without_privileges(), pytest.raises(ValueError, match=r"data/private cannot be read: Permission denied"):
        build_index(open_folder / "data", CONFIG, open_folder / "cache")
    (open_folder / "data/private").chmod(0o755)


def test_an_unreadable_tar_is_named(open_folder: Path) -> None:
    write_tar(open_folder / "a.tar", {"a.jpg": jpeg()})
    (open_folder / "a.tar").chmod(0)
    with without_privileges(), pytest.raises(PermissionError, match=r"a\.tar"):
        build_index(open_folder / "a.tar", CONFIG, open_folder / "cache")


def test_a_read_only_data_folder_is_enough(open_folder: Path) -> None:
    write_jpegs(open_folder / "data", "frog/a.jpg", "toad/b.jpg")
    write_tar(open_folder / "packed/c.tar.gz", {"c.jpg": jpeg(), "c.cls": b"frog"}, "w:gz")
    folders = [open_folder / name for name in ("data", "data/frog", "data/toad", "packed")]
    for folder in folders:
        folder.chmod(0o555)
    with without_privileges():
        index = build_index([folders[0], folders[3]], CONFIG, open_folder / "cache")
        assert len([index.read(row) for row in range(3)]) == 3
    for folder in folders:
        folder.chmod(0o755)
    written = {path.name for path in open_folder.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert written == {"a.jpg", "b.jpg", "c.tar.gz"}


def test_names_that_are_not_unicode_are_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "data").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "data") + b"/\xff.jpg")).write_bytes(jpeg())
    with pytest.raises(ValueError, match=r"udcff.jpg' is not UTF-8; rename the file"):
        build_index(tmp_path / "data", CONFIG, cache)


SCRIPT = """
import sys
from glsd.config import DataConfig
from glsd.data.index import build_index
print(len(build_index(sys.argv[1], DataConfig(), sys.argv[2])))
"""


@pytest.mark.parametrize("source", ["data", "list.txt", "ö.jpg"])
def test_names_that_the_locale_cannot_read_say_what_to_set(tmp_path: Path, cache: Path, source: str) -> None:
    write_jpegs(tmp_path, "data/ö.jpg", "ö.jpg", "ascii/a.jpg")
    (tmp_path / "list.txt").write_text("ö.jpg\n", encoding="utf-8")
    # Of a user of today in an old locale; C stands for others, which may not be installed.
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def said(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, f"{tmp_path}/{source}", str(cache)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **locale, **environment}
        )

    assert said("ascii").stdout == "1\n"
    assert "is read as ascii by the locale of this process" in (refusal := said(source).stderr)
    assert "set PYTHONUTF8=1 in the environment" in refusal
    assert said(source, PYTHONUTF8="1").stdout == "1\n"


# Lists


def test_a_line_ends_where_editors_end_it_and_not_within_a_name(tmp_path: Path, cache: Path) -> None:
    odd = [f"a{character}b.jpg" for character in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\xa0"]
    write_jpegs(tmp_path, *odd, "c.jpg")
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "list.txt").write_text(end.join([*odd, " c.jpg\t", ""]), encoding="utf-8", newline="")
        assert sorted(names(build_index(tmp_path / "list.txt", CONFIG, cache), tmp_path)) == sorted([*odd, "c.jpg"])
    index = build_index(tmp_path / "list.txt", CONFIG, cache)
    write_subset(tmp_path / "subset.csv", index, subset(10, CONFIG))
    assert names(build_index(tmp_path / "subset.csv", CONFIG, cache), tmp_path) == names(index, tmp_path)


@pytest.mark.parametrize(
    ("texts", "classes"),
    [
        (["01", "1", "2"], ["01", "1", "2"]),
        (["7", "3", "12"], ["3", "7", "12"]),
        (["1", "-1", "0"], ["-1", "0", "1"]),
        (["1", "-0", "0"], ["-0", "0", "1"]),
        (["12345678901234567", "0", "1"], ["0", "1", "12345678901234567"]),
        (["1.0", "1", "2"], ["1", "1.0", "2"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tar", "parquet"])
def test_classes_are_those_that_images_have_by_the_text_of_their_labels(
    tmp_path: Path, cache: Path, texts: list[str], classes: list[str], kind: str
) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "csv":
        write_jpegs(tmp_path, *(f"{number}.jpg" for number in range(3)))
        path.write_text("path,label\n" + "".join(f"{number}.jpg,{text}\n" for number, text in enumerate(texts)))
    elif kind == "tar":
        members: dict[str, bytes] = {}
        for number, text in enumerate(texts):
            members |= {f"{number}.jpg": jpeg(number), f"{number}.cls": text.encode()}
        write_tar(path, members)
    else:
        pq.write_table(pa.table({"image": [jpeg(number) for number in range(3)], "label": texts}), path)
    index = build_index(path, CONFIG, cache)
    assert index.classes == classes
    assert labels(index) == texts


def test_a_text_list_is_relative_to_its_folder(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "lists/near.jpg", "far away/ö.jpg", "absolute.jpg")
    text = f"near.jpg\n\n../far away/ö.jpg\n{tmp_path}/absolute.jpg\n"
    (tmp_path / "lists/train.txt").write_text(text, encoding="utf-8-sig")
    index = build_index(tmp_path / "lists/train.txt", CONFIG, cache)
    assert names(index, tmp_path) == ["absolute.jpg", "far away/ö.jpg", "lists/near.jpg"]
    assert index.labels is None


def test_a_csv_list_has_paths_and_labels(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "a.jpg", "b, c.jpg", "d.jpg")
    (tmp_path / "train.csv").write_text('label,path\nfrog,d.jpg\n"toad, green","b, c.jpg"\nfrog,a.jpg\n')
    index = build_index(tmp_path / "train.csv", CONFIG, cache)
    assert names(index, tmp_path) == ["a.jpg", "b, c.jpg", "d.jpg"]
    assert labels(index) == ["frog", "toad, green", "frog"]


def test_the_label_column_of_a_list_is_a_setting(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.csv").write_text("uri,species\na.jpg,5\nb.jpg,2\n")
    assert build_index(tmp_path / "train.csv", CONFIG, cache).labels is None
    index = build_index(tmp_path / "train.csv", DataConfig(label_column="species"), cache)
    assert index.labels is not None
    assert index.labels.tolist() == [1, 0]
    assert (index.classes, index.class_ids) == (["2", "5"], [2, 5])


def test_a_column_length_alone_is_nothing_of_ours(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "a.jpg")
    (tmp_path / "train.csv").write_text("path,length\na.jpg,12.5\n")
    assert build_index(tmp_path / "train.csv", CONFIG, cache).read(0) == jpeg(0)


def test_a_missing_entry_of_a_list_is_named_with_its_line(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for entry in ("gone.jpg", "folder.jpg", "a.jpg/b.jpg"):
        (tmp_path / "train.txt").write_text(f"a.jpg\n\n{entry}\n")
        with pytest.raises(ValueError, match=rf"train\.txt, line 3: .*{entry} is not a file that exists \(1 of 2"):
            build_index(tmp_path / "train.txt", CONFIG, cache)
        (tmp_path / "train.csv").write_text(f"path\na.jpg\n{entry}\n")
        with pytest.raises(ValueError, match=rf"train\.csv, line 3: .*{entry} is not a file"):
            build_index(tmp_path / "train.csv", CONFIG, cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,1\n", "no column 'path' or 'uri'; its first line has file, label"),
        ("", "no column 'path' or 'uri'; its first line has nothing"),
        ("path,label\n", "lists no image below its first line"),
        ("path,label\na.jpg\n", "line 2: 1 columns where the first line has 2"),
        ("path,label\na.jpg,1\nb.jpg,\n", "line 3: no label; label all images or none"),
        ("path\na.jpg\nb.jpg\na.jpg\n", r"a\.jpg is named twice"),
        ("path,offset\na.jpg,0\n", "has a column 'offset' and no 'length'; name both"),
        ("path,offset,length\na.jpg,0,9\nb.jpg,0,9.5\n", r"line 3: the length '9\.5' is not a whole number of bytes"),
        (
            'path,label\na.jpg,1\n"b.jpg,2\na.jpg,3\n',
            r"line 3: .*; a quote \(\"\) that opens a value there must be closed",
        ),
        ('path,label\n"b.jpg,2\n' + "a.jpg,3\n" * 30_000, r"line 2: .*; a quote"),
        ("path,offset,length\na.jpg,5,99999\n", r"line 2: bytes 5 to 100004 do not lie within the file of \d+ bytes"),
    ],
)
def test_a_wrong_csv_list_is_explained(tmp_path: Path, cache: Path, text: str, message: str) -> None:
    write_jpegs(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path / "train.csv", CONFIG, cache)


def test_blanks_around_a_column_name_and_a_label_do_not_count(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.csv").write_text("path, label\na.jpg, frog\nb.jpg, toad\n")
    assert labels(build_index(tmp_path / "train.csv", CONFIG, cache)) == ["frog", "toad"]


def test_an_empty_name_is_no_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jpegs(tmp_path, "a.jpg")
    for nothing in ("", [], [tmp_path, ""]):
        with pytest.raises(ValueError, match="no data named"):
            build_index(nothing, CONFIG, cache)


def test_a_list_must_be_text(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train\.txt is not UTF-8 text"):
        build_index(tmp_path / "train.txt", CONFIG, cache)
    (tmp_path / "train.txt").write_bytes(b"\n \n")
    with pytest.raises(ValueError, match=r"train\.txt lists no image"):
        build_index(tmp_path / "train.txt", CONFIG, cache)


# Tars


def test_members_of_tars_are_read_by_range(tmp_path: Path, cache: Path) -> None:
    contents = {f"{shard}/{number}": jpeg(10 * shard + number) for shard in range(2) for number in range(3)}
    for shard in range(2):
        members = {f"ordner/{number}.jpg": contents[f"{shard}/{number}"] for number in range(3)}
        write_tar(tmp_path / f"data/{shard}.tar", members)
    index = build_index(tmp_path / "data", CONFIG, cache)
    expected = [f"{shard}.tar#ordner/{number}.jpg" for shard in range(2) for number in range(3)]
    assert names(index, tmp_path / "data") == expected
    assert [index.read(row) for row in range(6)] == list(contents.values())
    assert index.labels is None
    assert index.packed == []


@pytest.mark.parametrize(
    ("texts", "classes"),
    [(("3", "1"), ["1", "3"]), (("10", "-9"), ["-9", "10"]), (("newt", "frog"), ["frog", "newt"])],
)
def test_a_webdataset_has_the_labels_of_its_cls_members(
    tmp_path: Path, cache: Path, texts: tuple[str, str], classes: list[str]
) -> None:
    write_tar(
        tmp_path / "a.tar",
        {
            "x/1.cls": texts[0].encode() + b"\n",
            "x/1.jpg": jpeg(1),
            "x/1.mask.png": encoded(photograph(), "PNG"),
            "x/1.json": b"{}",
            "x/._1.jpg": b"resource fork",
            "x/2.PNG": encoded(photograph(), "PNG"),
            "x/2.cls": texts[1].encode(),
        },
    )
    with pytest.warns(
        UserWarning, match=r"a\.tar that are left out: 1, such as x/1\.mask\.png\. .* a part of the image 1"
    ):
        index = build_index(tmp_path / "a.tar", CONFIG, cache)
    assert names(index, tmp_path) == ["a.tar#x/1.jpg", "a.tar#x/2.PNG"]
    assert index.classes == classes
    assert labels(index) == list(texts)


def write_shards(folder: Path, ids: list[int], names: object = None) -> None:
    """One tar an image, with its class id, and the class names as JSON."""
    for number, class_id in enumerate(ids):
        write_tar(folder / f"{number}.tar", {"a.jpg": jpeg(number), "a.cls": str(class_id).encode()})
    if names is not None:
        (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")


@pytest.mark.parametrize(
    "listed",
    [
        ["toad", "frög", "newt", "eft"],
        [
            {"label": label, "wnid": "n", "words": name}
            for label, name in ((1, "frög"), (0, "toad"), (3, "eft"), (2, "newt"))
        ],
        [{"label": label, "name": name} for label, name in enumerate(("toad", "frög", "newt", "eft"))],
    ],
)
@pytest.mark.parametrize("source", ["", "{0..2}.tar"])
def test_class_names_beside_tars_name_their_class_ids(tmp_path: Path, cache: Path, listed: object, source: str) -> None:
    write_shards(tmp_path / "data", [2, 0, 1], listed)
    index = build_index(tmp_path / "data" / source, CONFIG, cache)
    assert index.classes == ["toad", "frög", "newt", "eft"]
    assert labels(index) == ["newt", "toad", "frög"]


def test_other_class_names_are_other_data(tmp_path: Path, cache: Path) -> None:
    write_shards(tmp_path / "data", [1, 0])
    unnamed = build_index(tmp_path / "data", CONFIG, cache)
    write_shards(tmp_path / "data", [], ["frog", "toad"])
    named = build_index(tmp_path / "data", CONFIG, cache)
    assert (unnamed.classes, named.classes) == (["0", "1"], ["frog", "toad"])
    assert unnamed.digest != named.digest
    write_shards(tmp_path / "data", [], ["0", "1"])  # as an index calls classes that have no names
    assert build_index(tmp_path / "data", CONFIG, cache).digest == unnamed.digest


def test_class_ids_that_mean_different_classes_are_told_apart_by_their_names(tmp_path: Path, cache: Path) -> None:
    write_shards(tmp_path / "a", [0, 1], ["toad", "frog"])
    write_shards(tmp_path / "b", [0, 1], ["frog", "newt"])
    write_jpegs(tmp_path / "c", "eft/1.jpg", "toad/1.jpg")
    index = build_index([tmp_path / "a", tmp_path / "b", tmp_path / "c"], CONFIG, cache)
    assert index.classes == ["eft", "frog", "newt", "toad"]
    assert labels(index) == ["toad", "frog", "frog", "newt", "eft", "toad"]


@pytest.mark.parametrize("listed", [{"frog": 0}, ["frog", 1], ["frog", "frog"], 3, [{"label": 1, "name": "frog"}]])
def test_class_names_that_are_no_list_are_not_used_and_named(tmp_path: Path, cache: Path, listed: object) -> None:
    write_shards(tmp_path / "data", [0, 1], listed)
    with pytest.warns(UserWarning, match=r"data/classes\.json is not used: it is not a JSON list of different names"):
        assert build_index(tmp_path / "data", CONFIG, cache).classes == ["0", "1"]


def test_class_names_that_are_too_few_are_not_used_and_named(tmp_path: Path, cache: Path) -> None:
    write_shards(tmp_path / "data", [0, 3], ["frog", "toad"])
    with pytest.warns(UserWarning, match=r"labels 0 to 3, and its classes\.json has 2 names"):
        assert build_index(tmp_path / "data", CONFIG, cache).classes == ["0", "3"]


def test_shards_of_a_pack_that_is_not_complete_are_refused_unless_they_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "bucket/data/shards"
    write_shards(shards, [0, 1, 0])
    sizes = {path.name: path.stat().st_size for path in sorted(shards.iterdir())}
    plan = {"shards": [[name, row, row + 1, size] for row, (name, size) in enumerate(sizes.items())]}
    (shards / "pack.json").write_text(json.dumps(plan))
    whole = (shards / "2.tar").read_bytes()
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    with object_store(tmp_path) as address:
        for bucket, options in (
            (tmp_path / "bucket", ""),
            ("s3://bucket", f"?endpoint_override={address}&scheme=http&region=us-east-1"),
        ):
            (shards / "2.tar").write_bytes(whole)
            for folder in ("data", "data/shards"):
                assert len(build_index(f"{bucket}/{folder}{options}", CONFIG, cache)) == 3
            (shards / "2.tar").write_bytes(whole + bytes(512))
            for is_missing in (False, True):
                if is_missing:
                    (shards / "2.tar").unlink()
                for folder in ("data", "data/shards"):
                    with pytest.raises(ValueError, match=r"names 3 .* of which 1 .* such as 2\.tar: .* `glsd pack`"):
                        build_index(f"{bucket}/{folder}{options}", CONFIG, cache)
                assert len(build_index(f"{bucket}/data/shards/{{0..1}}.tar{options}", CONFIG, cache)) == 2


def test_a_few_images_beside_the_folders_of_classes_are_named_as_the_reason_for_no_labels(
    tmp_path: Path, cache: Path
) -> None:
    write_jpegs(tmp_path / "data", *(f"{name}/{number}.jpg" for name in ("frog", "toad") for number in range(8)))
    write_jpegs(tmp_path / "data", "loose.jpg")
    with pytest.warns(UserWarning, match=r"not taken for classes, since 1 of 17 images .* such as .*data/loose\.jpg"):
        assert build_index(tmp_path / "data", CONFIG, cache).labels is None


def test_a_pack_json_of_somebody_elses_is_nothing_of_ours(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "data/a.tar", {"1.jpg": jpeg(1)})
    for content in ('{"name": "pack", "shards": 7}', "[]", "no JSON"):
        (tmp_path / "data/pack.json").write_text(content)
        assert len(build_index(tmp_path / "data", CONFIG, cache)) == 1


def test_dots_in_names_do_not_hide_images(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar", {"scan.1.jpg": jpeg(1), "scan.2.jpg": jpeg(2)})
    assert names(build_index(tmp_path / "a.tar", CONFIG, cache), tmp_path) == ["a.tar#scan.1.jpg", "a.tar#scan.2.jpg"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_label_belongs_to_the_image_of_its_whole_name_before_it_belongs_to_the_key(
    tmp_path: Path, cache: Path, suffix: str
) -> None:
    dates = {"2024.01.03": b"1", "2024.02.07": b"5", "2024.02.08": b"3"}
    members: dict[str, bytes] = {}
    for number, (date, label) in enumerate(dates.items()):
        members |= {f"x.y/scan {date}.jpg": jpeg(number), f"x.y/scan {date}.cls": label}
    for side in ("left", "right"):
        members[f"pair.{side}.jpg"] = jpeg(7)
    write_tar(tmp_path / f"a.{suffix}", members | {"pair.cls": b"8"}, "w:gz" if suffix == "tar.gz" else "w")
    index = build_index(tmp_path / f"a.{suffix}", CONFIG, cache)
    shown = [index.uri(row).rpartition("#")[2].removeprefix("a.tar.gz/") for row in range(5)]
    assert dict(zip(shown, labels(index) or [], strict=True)) == {
        "x.y/scan 2024.01.03.jpg": "1",
        "x.y/scan 2024.02.07.jpg": "5",
        "x.y/scan 2024.02.08.jpg": "3",
        "pair.left.jpg": "8",
        "pair.right.jpg": "8",
    }


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_what_is_left_out_of_a_tar_is_counted_and_named(tmp_path: Path, cache: Path, suffix: str) -> None:
    members = {"photo.jpg": jpeg(0), "photo.2.jpg": jpeg(1), "x/photo.3.jpg": jpeg(2), "photo.4.jpg": jpeg(3)}
    members |= {"lost.cls": b"1", "a.heic": b"", "b.HEIC": b"", "c.dcm": b"", "photo.json": b"{}", "._d.heic": b""}
    write_tar(tmp_path / f"a.{suffix}", members, "w:gz" if suffix == "tar.gz" else "w")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        index = build_index(tmp_path / f"a.{suffix}", CONFIG, cache)
    assert len(index) == 2
    source = f"{tmp_path}/a.{suffix}"
    assert sorted(str(warning.message).replace(f"a.{suffix}/", "") for warning in said) == [
        f"{source} also holds 3 files of kinds that are not read: .heic 2, .dcm 1; if they are images, convert them",
        f"images of {source} that are left out: 2, such as photo.2.jpg. In a WebDataset it is a part of the image "
        "photo, of the same name up to the first dot. If it is an image of its own, rename it, for example to "
        "photo_2.jpg",
        f"labels of {source} that belong to no image: 1, such as lost.cls. Name a .cls as its image, or as its image "
        "up to the first dot",
    ]


def test_long_and_foreign_names_in_tars(tmp_path: Path, cache: Path) -> None:
    name = f"{'ü' * 90}/{'日' * 60}.jpg"
    write_tar(tmp_path / "a.tar", {name: jpeg()})
    index = build_index(tmp_path / "a.tar", CONFIG, cache)
    assert names(index, tmp_path) == [f"a.tar#{name}"]
    assert index.read(0) == jpeg()


def test_braces_name_shards(tmp_path: Path, cache: Path) -> None:
    for shard in range(9, 12):
        write_tar(tmp_path / f"{shard:03d}.tar", {f"{shard}.jpg": jpeg(shard)})
    index = build_index(tmp_path / "{009..011}.tar", CONFIG, cache)
    assert names(index, tmp_path) == ["009.tar#9.jpg", "010.tar#10.jpg", "011.tar#11.jpg"]
    assert len(build_index(tmp_path / "{009,011}.tar", CONFIG, cache)) == 2
    with pytest.raises(ValueError, match=r"012\.tar does not exist"):
        build_index(tmp_path / "{009..012}.tar", CONFIG, cache)


def test_braces_may_be_part_of_a_name(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "data{1}", "a.jpg")
    assert names(build_index(tmp_path / "data{1}", CONFIG, cache), tmp_path / "data{1}") == ["a.jpg"]


def test_a_member_without_a_label_is_named(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": jpeg(1), "a.cls": b"0"})
    write_tar(tmp_path / "1.tar", {"b.jpg": jpeg(2), "b.cls": b"0", "c.jpg": jpeg(3)})
    with pytest.raises(ValueError, match=r"c\.jpg in .*1\.tar has no \.cls beside it"):
        build_index(tmp_path / "{0..1}.tar", CONFIG, cache)


def test_a_tar_without_an_image_is_named(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.txt": b"text"})
    with pytest.raises(ValueError, match=r"a\.tar holds no image"):
        build_index(tmp_path / "a.tar", CONFIG, cache)


def test_a_truncated_tar_is_named(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": encoded(photograph(), "BMP") for number in range(3)})
    data = (tmp_path / "a.tar").read_bytes()
    for broken in (data[:15_000], data[: 512 + 9216 + 512 + 100], b"no tar at all " * 100, b""):
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.tar is not a plain tar, or is broken"):
            build_index(tmp_path / "a.tar", CONFIG, cache)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar.gz", "w:gz"), ("TGZ", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")]
)
def test_compressed_tars_are_packed_once(tmp_path: Path, cache: Path, suffix: str, mode: str) -> None:
    members = {"x/a.jpg": jpeg(1), "x/a.cls": b"frog", "x/b.jpg": jpeg(2), "x/b.cls": b"toad", "x/c.txt": b"-"}
    write_tar(tmp_path / f"data/a.{suffix}", members, mode)
    counts: list[int] = []
    index = build_index(tmp_path / "data", CONFIG, cache, counts.append)
    assert counts[-1] >= 2
    assert counts == sorted(counts)
    assert [index.read(row) for row in range(len(index))] == [jpeg(1), jpeg(2)]
    assert labels(index) == ["frog", "toad"]
    assert index.packed == [str(Path(index.place(0).uri).parent)]
    assert [name.partition("#")[2] for name in names(index, cache)] == [f"a.{suffix}/x/a.jpg", f"a.{suffix}/x/b.jpg"]
    by_uri = build_index(f"file://{tmp_path}/data/a.{suffix}", CONFIG, cache)
    assert [name.partition("#")[2] for name in names(by_uri, cache)] == [f"a.{suffix}/x/a.jpg", f"a.{suffix}/x/b.jpg"]
    packed = {path: path.stat().st_mtime_ns for path in cache.rglob("*.tar")}
    assert packed
    write_jpegs(tmp_path, "other/frog/1.jpg")
    again = build_index([tmp_path / "data", tmp_path / "other"], CONFIG, cache)
    assert len(again) == 3
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.tar")} == packed


def test_a_broken_compressed_tar_is_named(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar.gz", {f"{number}.jpg": jpeg(number) for number in range(50)}, "w:gz")
    data = (tmp_path / "a.tar.gz").read_bytes()
    for broken in (data[: len(data) // 2], data[:3000] + bytes(100) + data[3100:], b"not compressed"):
        (tmp_path / "a.tar.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.tar\.gz is not a compressed tar, or is broken"):
            build_index(tmp_path / "a.tar.gz", CONFIG, cache)
    assert not list(cache.glob("packed*/")), "what was packed so far is removed"


def test_a_packed_tar_that_was_deleted_is_made_again(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar.gz", {"a.jpg": jpeg()}, "w:gz")
    build_index(tmp_path / "a.tar.gz", CONFIG, cache)
    for folder in cache.glob("packed*/"):
        shutil.rmtree(folder)
    assert build_index(tmp_path / "a.tar.gz", CONFIG, cache).read(0) == jpeg()


# Parquet


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_files_hold_bytes_or_structs_of_bytes(tmp_path: Path, cache: Path, struct: bool) -> None:
    for part in range(2):
        images: list[object] = [jpeg(3 * part + number) for number in range(3)]
        if struct:
            images = [{"bytes": data, "path": "x.png"} for data in images]
        (tmp_path / "data").mkdir(exist_ok=True)
        table = pa.table({"image": images, "label": [2, 0, 1], "other": [0.5] * 3})
        pq.write_table(table, tmp_path / f"data/part-{part}.parquet", row_group_size=2)
    index = build_index(tmp_path / "data", CONFIG, cache)
    assert [index.read(row) for row in range(6)] == [jpeg(number) for number in range(6)]
    assert index.labels is not None
    assert index.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert index.uri(4).endswith("#part-1.parquet/000000001.jpg")


def test_columns_of_parquet_files_are_settings(tmp_path: Path, cache: Path) -> None:
    table = pa.table({"photo": pa.array([jpeg(1), jpeg(2)], pa.large_binary()), "species": ["newt", "frog"]})
    pq.write_table(table, tmp_path / "a.parquet")
    config = DataConfig(image_column="photo", label_column="species")
    assert labels(build_index(tmp_path / "a.parquet", config, cache)) == ["newt", "frog"]
    assert build_index(tmp_path / "a.parquet", DataConfig(image_column="photo"), cache).labels is None
    with pytest.raises(ValueError, match=r"no column 'image'; set data\.image_column to one of its .*: photo, species"):
        build_index(tmp_path / "a.parquet", CONFIG, cache)
    with pytest.raises(ValueError, match=r"column 'species' is of type string; data\.image_column must name"):
        build_index(tmp_path / "a.parquet", DataConfig(image_column="species"), cache)


def test_undecodable_rows_stay_images(tmp_path: Path, cache: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(1), b"", b"no image"]}), tmp_path / "a.parquet")
    index = build_index(tmp_path / "a.parquet", CONFIG, cache)
    assert [index.read(row) for row in range(3)] == [jpeg(1), b"", b"no image"]


def test_a_row_without_bytes_or_with_a_wrong_label_is_named(tmp_path: Path, cache: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(1), None]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: no bytes in column 'image'"):
        build_index(tmp_path / "a.parquet", CONFIG, cache)
    pq.write_table(pa.table({"image": [jpeg(1)], "label": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 0: 0\.5 in column 'label' is not a label"):
        build_index(tmp_path / "a.parquet", CONFIG, cache)


def test_a_broken_parquet_file_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file, or is broken"):
        build_index(tmp_path / "a.parquet", CONFIG, cache)


# Several sources


def test_several_sources_of_several_kinds_share_their_classes(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "folder/newt/1.jpg", "folder/frog/2.jpg", "listed.jpg")
    (tmp_path / "list.csv").write_text("path,label\nlisted.jpg,toad\n")
    write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(5), "a.cls": b"frog"})
    index = build_index([tmp_path / "list.csv", tmp_path / "folder", tmp_path / "a.tar"], CONFIG, cache)
    assert index.classes == ["frog", "newt", "toad"]
    assert list(zip(names(index, tmp_path), labels(index) or [], strict=True)) == [
        ("a.tar#a.jpg", "frog"),
        ("folder/frog/2.jpg", "frog"),
        ("folder/newt/1.jpg", "newt"),
        ("listed.jpg", "toad"),
    ]


def test_sources_without_labels_make_all_unlabelled_and_say_so(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "labelled/newt/1.jpg", "flat/2.jpg")
    with pytest.warns(UserWarning, match="labels of some sources are not used, since .*flat has none"):
        index = build_index([tmp_path / "labelled", tmp_path / "flat"], CONFIG, cache)
    assert index.labels is None


def test_an_image_named_twice_is_refused(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path, "data/1.jpg", "data/2.jpg")
    with pytest.raises(ValueError, match=r"data/2\.jpg is named twice"):
        build_index([tmp_path / "data", tmp_path / "data/2.jpg"], CONFIG, cache)


def test_a_subset_of_tar_members_is_a_list_of_ranges(tmp_path: Path, cache: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(4):
            members |= {f"{number}.jpg": jpeg(10 * shard + number), f"{number}.cls": b"%d" % (number % 2)}
        write_tar(tmp_path / f"{shard}.tar", members)
    config = DataConfig(images_per_class=2)
    index = build_index(tmp_path / "{0..1}.tar", config, cache)
    assert index.labels is not None
    image_ids = subset(index.labels, config)
    write_subset(tmp_path / "subset.csv", index, image_ids)
    again = build_index(tmp_path / "subset.csv", config, cache)
    assert [again.read(row) for row in range(4)] == [index.read(image_id) for image_id in image_ids.tolist()]
    assert again.labels is not None
    assert again.labels.tolist() == index.labels[image_ids].tolist()
    with (tmp_path / "subset.csv").open() as file:
        assert [row["uri"] for row in csv.DictReader(file)] == [index.place(row).uri for row in image_ids.tolist()]


# Object stores


def test_file_uris_go_through_pyarrow(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "große bilder", "frog/100%.jpg", "toad/what?#.jpg", "toad/.hidden.jpg")
    index = build_index(f"file://{tmp_path}/große bilder/", CONFIG, cache)
    assert labels(index) == ["frog", "toad"]
    assert [index.read(row) for row in range(2)] == [jpeg(0), jpeg(1)]
    write_subset(tmp_path / "subset.csv", index, subset(2, CONFIG))
    again = build_index(tmp_path / "subset.csv", CONFIG, cache)
    assert [again.read(row) for row in range(2)] == [jpeg(0), jpeg(1)]


def test_an_object_store_is_listed_and_read_by_range(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jpegs(tmp_path / "bucket", "train/frog/a b.jpg", "train/toad/ö 100%.jpg", "train/toad/c.jpg", "other/d.jpg")
    write_tar(tmp_path / "bucket/shards/0.tar", {"x.jpg": jpeg(7), "x.cls": b"frog"})
    write_tar(tmp_path / "bucket/shards/1.tar", {"y.jpg": jpeg(8), "y.cls": b"newt"})
    write_tar(tmp_path / "bucket/shards.tar.gz", {"z.jpg": jpeg(9), "z.cls": b"newt"}, "w:gz")
    (tmp_path / "bucket/train.csv").write_text("path,label\ntrain/toad/c.jpg,toad\ntrain/toad/ö 100%.jpg,toad\n")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    with object_store(tmp_path) as address:
        options = f"?endpoint_override={address}&scheme=http&region=us-east-1"
        index = build_index(f"s3://bucket/train{options}", CONFIG, cache)
        assert labels(index) == ["frog", "toad", "toad"]
        assert [index.read(row) for row in range(3)] == [jpeg(0), jpeg(2), jpeg(1)]
        assert build_index(f"s3://bucket/train{options}", CONFIG, cache).digest == index.digest
        index = build_index([f"s3://bucket/shards/{{0..1}}.tar{options}"], CONFIG, cache)
        assert [index.read(row) for row in range(2)] == [jpeg(7), jpeg(8)]
        assert labels(index) == ["frog", "newt"]
        (tmp_path / "bucket/named").mkdir()
        write_shards(tmp_path / "bucket/named", [1, 0], ["frog", "toad"])
        assert labels(build_index(f"s3://bucket/named{options}", CONFIG, cache)) == ["toad", "frog"]
        index = build_index(f"s3://bucket/shards.tar.gz{options}", CONFIG, cache)
        assert (index.read(0), labels(index)) == (jpeg(9), ["newt"])
        index = build_index(f"s3://bucket/train.csv{options}", CONFIG, cache)
        assert [index.read(row) for row in range(2)] == [jpeg(2), jpeg(1)]
        with pytest.raises(ValueError, match=r"s3://bucket/nowhere.* does not exist"):
            build_index(f"s3://bucket/nowhere{options}", CONFIG, cache)
        (tmp_path / "bucket/train/toad/c.jpg").unlink()
        with pytest.raises(ValueError, match=r"c\.jpg.* is gone since the index was made"):
            index.read(0)


def test_a_bucket_of_many_prefixes_is_listed_in_one_go(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    for number in range(1001):
        (tmp_path / f"bucket/data/{number:04d}").mkdir(parents=True)
        (tmp_path / f"bucket/data/{number:04d}/image.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "bucket/data/.git").mkdir()
    (tmp_path / "bucket/data/.git/image.jpg").write_bytes(b"\xff\xd8\xff")
    asked: list[str] = []
    with object_store(tmp_path, asked) as address:
        index = build_index(f"s3://bucket/data?endpoint_override={address}&scheme=http", CONFIG, cache)
    assert len(index) == 1001
    assert len(asked) < 10


def test_google_cloud_storage_holds_the_same_images_as_the_local_folder(tmp_path: Path, cache: Path) -> None:
    write_jpegs(tmp_path / "bucket", "photos/frog/a b.jpg", "photos/toad/ö 100%.jpg", "photos/toad/c.jpg")
    write_jpegs(tmp_path / "bucket", "photos of others/d.jpg", "photos/toad/.hidden.jpg")
    members = {"x.jpg": jpeg(7), "x.cls": b"frog", "padding.bin": bytes(3 << 20), "y.jpg": jpeg(8), "y.cls": b"newt"}
    write_tar(tmp_path / "bucket/shards/0.tar", members)
    (tmp_path / "bucket/train.csv").write_text("path,label\nphotos/toad/c.jpg,toad\nphotos/toad/ö 100%.jpg,toad\n")
    with google_store(tmp_path) as address:
        options = f"?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
        for name in ("photos", "shards", "train.csv"):
            source = f"gs://anonymous@bucket/{name}{options}"
            local, index = build_index(tmp_path / "bucket" / name, CONFIG, cache), build_index(source, CONFIG, cache)
            places, local_places = ([each.place(row) for row in range(len(local))] for each in (index, local))
            assert [unquote_key(place.uri).removeprefix("gs://anonymous@bucket/") for place in places] == [
                place.uri.removeprefix(f"{tmp_path}/bucket/") for place in local_places
            ]
            assert [place[1:] for place in places] == [place[1:] for place in local_places]
            assert labels(index) == labels(local)
            assert [index.read(row) for row in range(len(index))] == [local.read(row) for row in range(len(local))]
            assert build_index(source, CONFIG, cache).digest == index.digest
        with pytest.raises(ValueError, match=r"gs://anonymous@bucket\?.* holds 4 images and 1 tars"):
            build_index(f"gs://anonymous@bucket{options}", CONFIG, cache)
        with pytest.raises(ValueError, match=r"gs://anonymous@bucket/nowhere.* does not exist"):
            build_index(f"gs://anonymous@bucket/nowhere{options}", CONFIG, cache)
        (tmp_path / "bucket/photos/toad/c.jpg").unlink()
        with pytest.raises(ValueError, match=r"c\.jpg.* is gone since the index was made"):
            index.read(0)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hidden@bucket/photos",
        "s3://AKIA:hid/den@bucket/photos",
        "s3://hidden@bucket/photos",
        "s3://bucket/photos?region=eu-west-1&secret_key=hidden",
        "s3://bucket/photos?access_key=hidden",
        "s3://bucket/photos?endpoint_override=http://AKIA:hidden@host:9000",
        "gs://anyone:hidden@bucket/photos",
        "gs://bucket/photos?access_token=hidden",
        "file://me:hidden@/photos",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_shown(tmp_path: Path, cache: Path, uri: str) -> None:
    (tmp_path / "list.txt").write_text(f"\n{uri}/a.jpg\n")
    (tmp_path / "list.csv").write_text(f"uri\n{uri}/a.jpg\n")
    for source, where in ((uri, ""), ("list.txt", r"list\.txt, line 2: "), ("list.csv", r"list\.csv, line 2: ")):
        message = (
            where + "a URI that begins with .*:// holds credentials, .* AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        with pytest.raises(ValueError, match=message) as refusal:
            build_index(source if source == uri else tmp_path / source, CONFIG, cache)
        assert "hid" not in str(refusal.value)


def test_an_unknown_scheme_names_the_known_ones(cache: Path) -> None:
    with pytest.raises(ValueError, match="ftp:// is not known; use a local path or one of file, s3, gs"):
        build_index("ftp://host/data", CONFIG, cache)
