"""A PostgreSQL server of a test's own."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import lacking

POSTGRES = shutil.which("postgres") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None)
PASSWORD = "s3cret word"


@contextmanager
def postgres_server(
    folder: Path,  # a temporary one
) -> Iterator[str]:
    """Its address, with `${PG_WORD}` where the password belongs that it asks for."""
    if POSTGRES is None:
        lacking("needs PostgreSQL: apt-get install postgresql")
    options: dict[str, Any] = {"check": True, "capture_output": True}
    if os.geteuid() == 0:  # which the server refuses to run as
        user = pwd.getpwnam("postgres")
        shutil.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "cwd": folder}
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    binaries = Path(POSTGRES).resolve().parent
    subprocess.run(
        [binaries / "initdb", "-D", folder / "db", "-A", "scram-sha-256", "-U", "me", f"--pwfile={folder}/password"],
        **options,
    )
    command = [binaries / "pg_ctl", "-D", folder / "db", "-w", "-l", folder / "log"]
    listen = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    subprocess.run([*command, "-o", listen, "start"], **options)
    try:
        yield "postgresql+psycopg://me:${PG_WORD}@/postgres?host=" + str(folder)
    finally:
        subprocess.run([*command, "-m", "immediate", "stop"], **options)
