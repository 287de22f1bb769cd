"""A Hugging Face folder with a damaged config.json or safetensors header is read, or refused by its name."""

import random
import struct
import time
from collections import Counter
from pathlib import Path

from support.llama_folders import make_llama

from faults.door import never_forever
from faults.hostile_bytes import BYTES, JSON, other_json
from faults.scale import scaled
from niels_gpt.errors import CheckpointError
from niels_gpt.weights.llama import read_llama

DAMAGE = BYTES | JSON | {"other": other_json, "and other": other_json}


def test_a_damaged_folder_is_read_or_refused_by_its_name(tmp_path: Path) -> None:
    folder, ended = tmp_path / "hostile", Counter[str]()
    make_llama(folder)
    paths = {name: folder / name for name in ("config.json", "model.safetensors")}
    good = {name: path.read_bytes() for name, path in paths.items()}
    (length,) = struct.unpack("<Q", good["model.safetensors"][:8])
    header, data = (good["model.safetensors"][part] for part in (slice(8, 8 + length), slice(8 + length, None)))
    for number in range(scaled(200, 5000)):
        draw = random.Random(number)
        damage = DAMAGE[draw.choice(sorted(DAMAGE))]
        if number % 2:
            name, content = "config.json", damage(good["config.json"], draw)
        else:
            name, changed = "model.safetensors", damage(header, draw)
            content = struct.pack("<Q", len(changed)) + changed + data
        paths[name].write_bytes(content)
        started = time.process_time()
        try:
            with never_forever():
                read_llama(folder)
            ended["read"] += 1
        except CheckpointError as error:
            said = str(error)
            assert str(folder) in said and len(said) < 800, (number, said)
            assert all(line.isprintable() for line in said.splitlines()), (number, said)
            ended["refused"] += 1
        assert time.process_time() - started < 1, number
        paths[name].write_bytes(good[name])
    assert min(ended["read"], ended["refused"]) > 0
