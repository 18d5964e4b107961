"""What becomes of files as other people ship them: every one is made, opened as a user's command opens it, and listed.

    python benchmarks/wild_files.py [--only GROUP ...] [--name WORDS] [--folder DIR] [--out FILE]

The files are described in tests/wild_files. Each group is made and opened in a process of its own, since frameworks do not go
together; groups whose framework is not installed are left as they were. docs/make_compatibility.py makes the page of what is kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from wild_files.wild_file import GROUPS, became, group  # noqa: E402 - tests are no package

OUT = ROOT / "benchmarks" / "results" / "wild_files.json"


def tried(name: str, only: str, folder: Path, locked_in: bool) -> list[dict[str, Any]]:
    """Make and open the files of a group, in this process."""
    found = []
    for number, file in enumerate(group(name)[1]):
        if only not in file.name:
            continue
        place = folder / f"{name}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        (place / "out").mkdir(parents=True)
        started = time.perf_counter()
        result = became(file, file.make(place), place / "out", locked_in)
        seconds = time.perf_counter() - started
        wrong = "" if result.works == file.works else "   <-- OTHERWISE THAN IS RIGHT"
        print(f"{'works  ' if result.works else 'refused'} {seconds:5.1f} s  {file.name}{wrong}", file=sys.stderr)
        print(
            f"          {result.said}\n          -> {result.hint or '; '.join(result.notes)}",
            file=sys.stderr,
            flush=True,
        )
        found.append({"name": file.name, "right": file.works, **asdict(result)})
    return found


def main() -> None:
    """Run the groups one after the other; write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--name", default="", help="only files with these words in their names; nothing is written")
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    parser.add_argument(
        "--locked-in", action="store_true", help="in child processes, as the commands do: ten times slower"
    )
    parser.add_argument("--here", action="store_true", help="in this process, and print what is found as JSON")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    if asked.here:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(tried(asked.only[0], asked.name, asked.folder or Path(scratch), asked.locked_in)))
        return
    kept: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.is_file() else {"groups": {}}
    for name in asked.only:
        command = [sys.executable, __file__, "--here", "--only", name, "--name", asked.name]
        command += ["--locked-in"] if asked.locked_in else []
        command += ["--folder", str(asked.folder)] if asked.folder else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: not done", file=sys.stderr)
            continue
        kept["groups"][name] = {"heading": group(name)[0], "files": json.loads(done.stdout.splitlines()[-1])}
    if asked.name:
        return
    kept["groups"] = {name: kept["groups"][name] for name in GROUPS if name in kept["groups"]}
    kept |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": platform.platform()}
    asked.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
