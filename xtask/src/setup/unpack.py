"""Unpacks some paths of a wheel.

    unpack.py WHEEL FOLDER PATH...

A path that ends in `/` is a folder; static libraries and Python files in it are left out. Prints the number of bytes
unpacked so far, a line at a time. Exit codes: 0 done; 12 it could not be written; 14 a damaged wheel; 28 disk full;
the last line on stderr is the reason.
"""

import errno
import os
import sys
import zipfile
import zlib


def wanted(name, paths):
    if name.endswith("/"):
        return False
    inside = any(path.endswith("/") and name.startswith(path) for path in paths)
    return name in paths or (inside and not name.endswith((".a", ".py")))


def unpack(wheel, folder, paths):
    done = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if not wanted(member.filename, paths):
                continue
            target = os.path.join(folder, member.filename)
            if ".." in member.filename.split("/"):
                raise zipfile.BadZipFile("a path leads out of the folder: " + member.filename)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as out:
                while True:
                    chunk = source.read(1 << 20)  # the checksum is checked at the end of the member
                    if not chunk:
                        break
                    out.write(chunk)
                    done += len(chunk)
                    print(done, flush=True)
            os.chmod(target, 0o755 if ".so" in os.path.basename(target) else 0o644)


try:
    unpack(sys.argv[1], sys.argv[2], set(sys.argv[3:]))
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(28 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 12)
except (zipfile.BadZipFile, zlib.error) as error:
    print(error, file=sys.stderr)
    sys.exit(14)
except KeyboardInterrupt:
    os._exit(130)
