#!/usr/bin/env python3
"""What the kernel promises of a share that two clients have mounted, by the calls that the store in a directory makes.

usage: two-clients.py MOUNT-A MOUNT-B

Prints facts; the exit code is 1 if links are not exclusive or if asking the server does not show what is new.
"""

import ctypes
import errno
import os
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_EMPTY_PATH, AT_STATX_FORCE_SYNC, NOREPLACE = -100, 0x1000, 0x2000, 1


def rename(old, new):
    done = libc.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), NOREPLACE)
    return "done" if done == 0 else errno.errorcode[ctypes.get_errno()]


def link(old, new):
    try:
        os.link(old, new)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]


def exists(directory, path):
    try:
        os.close(os.open(path, os.O_RDONLY, dir_fd=directory))
        return True
    except FileNotFoundError:
        return False


def ask(directory):
    libc.statx(directory, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, 0x7FF, ctypes.create_string_buffer(256))
    fresh = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    os.listdir(fresh)  # what SMB takes
    os.close(fresh)


def race(clients, name, call):
    """Both clients give a file of theirs one name, 40 times; counts the answers."""
    counts = {}
    for turn in range(40):
        place = f"{name}{turn}"
        os.mkdir(f"{clients[0]}/{place}")
        for client in clients:
            with open(f"{client}/{place}/{os.path.basename(client)}", "w") as file:
                file.write(client)
            os.path.exists(f"{client}/{place}/object")  # as after a look in vain
        answers, barrier = [None, None], threading.Barrier(2)

        def run(at, client):
            barrier.wait()
            answers[at] = call(f"{client}/{place}/{os.path.basename(client)}", f"{client}/{place}/object")

        threads = [threading.Thread(target=run, args=each) for each in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        key = " and ".join(sorted(answers))
        counts[key] = counts.get(key, 0) + 1
    print(f"{name}: " + ", ".join(f"{key} {count} times" for key, count in counts.items()))
    return counts


def seen_after(clients, asks):
    """Seconds until the second client finds what the first has made after the second had looked in vain."""
    place = f"seen-{asks}"
    os.makedirs(f"{clients[0]}/{place}/below")
    directory = os.open(f"{clients[1]}/{place}/below", os.O_RDONLY | os.O_DIRECTORY)
    exists(directory, "object")
    os.listdir(directory)
    time.sleep(0.5)  # what has only just changed is not remembered
    exists(directory, "object")
    open(f"{clients[0]}/{place}/below/object", "w").close()
    if asks:
        ask(directory)
    began = time.monotonic()
    while not exists(directory, "object") and time.monotonic() - began < 90:
        time.sleep(0.1)
    os.close(directory)
    return time.monotonic() - began


def main():
    clients = sys.argv[1:3]
    race(clients, "renames without replacing", rename)
    links = race(clients, "links", link)
    later, asked = seen_after(clients, asks=False), seen_after(clients, asks=True)
    print(f"looked for in vain, then made by the other: found after {later:.1f} s; when asked, after {asked:.1f} s")
    sound = links.get("done and EEXIST", links.get("EEXIST and done")) == 40 and asked < 0.5
    sys.exit(0 if sound else 1)


main()
