"""The checksum in lines and files of JSON: damage that is still JSON is found, old lines are read."""

from __future__ import annotations

import json
import os
import random
import zlib
from pathlib import Path

import pytest

from localdpo.records.log import read_sealed, seal, unseal

RECORDS = [{"a": 1}, {"text": 'a "quoted" } brace', "ids": [1, 2]}, {"é": "😀", "n": None}]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_sealed_is_an_object_with_a_field_more(record: dict[str, object], indent: int | None) -> None:
    line = seal(json.dumps(record, ensure_ascii=False, indent=indent) + "\n")
    assert line.endswith(b'"}\n')
    found = json.loads(line)
    assert len(found.pop("crc")) == 8
    assert found == record
    assert json.loads(unseal(line)) == record


def test_an_object_without_a_checksum_is_read_as_it_is() -> None:
    assert unseal(b'{"a":1}') == b'{"a":1}'
    assert unseal(b"") == b""


@pytest.mark.parametrize("crc", ['"1f0c9e2"', '"1f\\ud80029e2"', "null", '"1f0c9e2aa"'])
def test_a_checksum_that_is_none_is_damage(crc: str) -> None:
    with pytest.raises(ValueError, match="its checksum is cut off or malformed"):
        unseal(f'{{"a":1,"crc":{crc}}}'.encode())


def test_the_checksum_of_a_known_line() -> None:
    assert seal('{"a":1}') == b'{"a":1,"crc":"%08x"}\n' % zlib.crc32(b'{"a":1')


def test_a_flipped_bit_never_gives_another_value() -> None:
    draw = random.Random(0)
    for record in RECORDS:
        line = seal(json.dumps(record, ensure_ascii=False))
        for place in range(len(line) - 1):
            damaged = bytearray(line)
            damaged[place] ^= 1 << draw.randrange(8)
            try:
                found = json.loads(unseal(bytes(damaged)))
            except ValueError:
                continue
            # Only the field of the checksum itself was hit: what was written is all there.
            assert {name: found.get(name) for name in record} == record


def test_a_lone_surrogate_is_replaced() -> None:
    assert json.loads(unseal(seal(json.dumps({"a": "\ud800"}, ensure_ascii=False)))) == {"a": "?"}


def test_a_file_that_was_written_twice_in_one_tick_of_the_disks_clock_is_parsed_twice(tmp_path: Path) -> None:
    file, parsed = tmp_path / "record.json", list[object]()

    def parse(found: object) -> object:
        parsed.append(found)
        return found

    for content in ({"a": 1}, {"a": 2}, {"a": 2}):
        file.write_bytes(seal(json.dumps(content)))
        os.utime(file, (10, 10))
        assert read_sealed(file, parse, "a record") == content
    assert parsed == [{"a": 1}, {"a": 2}]
