#!/usr/bin/env python3
"""Recovers a marked workload to many random moments and proves that each recovery ended exactly there.

usage: scripts/postgres-pitr.py [--major N] [--moments N] [--seed N] [--timelines N] [--marks N] [--kills N]

A server writes rows, each in a transaction of its own, and each with what was known of it: its number, its transaction,
the position of the log behind its commit, the time after it. `keepwell wal receive` archives meanwhile, base backups are
taken now and then, and a load without marks runs beside. Then the cluster is restored with `keepwell pg restore --start`
to moments chosen at random (a time between two commits, a position, a transaction, a restore point; inclusive and
exclusive), and must hold exactly the rows up to there. Every further timeline begins with a copy that was restored to the
past, opened and archived; moments of all timelines are recovered, and what cannot be reached must be refused.

On every timeline `--kills` times the server, or the receiver, is killed at a random row, and comes back. At the end of the
last one both die in the middle of the load: every commit that the server was told to be safe must come back.

KEEPWELL names the command, by default that of the dev build.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def fail(text):
    raise SystemExit(f"failed: {text}")


class World:
    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="keepwell-pitr-"))
        self.work.chmod(0o755)
        self.processes = []
        self.copies = []
        try:
            self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self):
        args = self.args
        started = subprocess.run(
            [ROOT / "scripts/servers/postgres.sh", "start", str(args.major), self.work / "server",
             "--conf", "wal_level = replica", "--conf", "checkpoint_timeout = 30s", "--conf", "max_wal_size = 64MB"],
            check=True, capture_output=True, text=True)
        self.env = dict(line.split("=", 1) for line in started.stdout.splitlines())
        self.owner = self.env["OWNER"]
        build = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/keepwell"
        self.keepwell = self.work / "keepwell"
        shutil.copy(os.environ.get("KEEPWELL", build), self.keepwell)
        for name in ("home", "repository", "copies"):
            (self.work / name).mkdir()
            if os.getuid() == 0:
                shutil.chown(self.work / name, self.owner, self.owner)
        if os.getuid() == 0:
            shutil.chown(self.work, self.owner, self.owner)
        self.has_backup = "\n  backup " in self.run_keepwell("pg", "--help").stdout

    def as_owner(self, command):
        # What is written stays in the work directory.
        env = ["env", "-u", "XDG_CONFIG_HOME", "-u", "XDG_DATA_HOME", "-u", "XDG_CACHE_HOME", f"HOME={self.work / 'home'}"]
        command = env + [str(word) for word in command]
        if os.getuid() != 0:
            return command
        group = subprocess.run(["id", "-g", self.owner], check=True, capture_output=True, text=True).stdout.strip()
        return ["setpriv", "--reuid", self.owner, "--regid", group, "--clear-groups"] + command

    def run(self, command, check=True):
        done = subprocess.run(self.as_owner(command), capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/")
        if check and done.returncode != 0:
            fail(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def run_keepwell(self, *args, check=True):
        return self.run([self.keepwell, "--repository", self.work / "repository", *args], check)

    def spawn(self, command, log):
        process = subprocess.Popen(self.as_owner(command), stdin=subprocess.DEVNULL, stdout=open(log, "ab"),
                                   stderr=subprocess.STDOUT, cwd="/", start_new_session=True)
        self.processes.append(process)
        return process

    def end(self, process):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.processes.remove(process)

    def close(self):
        for process in list(self.processes):
            self.end(process)
        for copy in list(self.copies):
            copy.stop()
        subprocess.run([ROOT / "scripts/servers/postgres.sh", "stop", self.work / "server"], capture_output=True)
        shutil.rmtree(self.work, ignore_errors=True)


class Server:
    """The original, or a copy that was restored and opened."""

    def __init__(self, world, socket, port, data):
        self.world, self.socket, self.port, self.data = world, socket, port, pathlib.Path(data)
        self.connection = f"host={socket} port={port} user=postgres dbname=postgres"

    def sql(self, text):
        done = self.world.run([pathlib.Path(self.world.env["CLIENT_BIN"]) / "psql", "-XAtq", "-d", self.connection,
                               "-v", "ON_ERROR_STOP=1", "-c", text])
        return done.stdout.strip()

    def flushed(self):
        """Up to here the server was told that its log is safe; None when nobody receives at the moment."""
        return self.sql("SELECT max(flush_lsn) FROM pg_stat_replication") or None

    def kill(self):
        """Ends all its processes at once, as if the machine had lost them."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        # So that it begins no further one meanwhile.
        os.kill(first, signal.SIGSTOP)
        children = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True).stdout.split()
        for pid in [first, *map(int, children)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in [first, *children]):
            time.sleep(0.02)
        # Where nobody fetches the exit status of orphans the number stays taken, and the next server would respect that.
        for lock in [self.data / "postmaster.pid", pathlib.Path(self.socket) / f".s.PGSQL.{self.port}.lock"]:
            lock.unlink()

    def start(self):
        log = self.world.work / f"again-{self.port}.log"
        done = self.world.run(["sh", "-c", f"'{self.world.env['BIN']}/pg_ctl' start -w -t 120 -s -D '{self.data}' -l '{log}' "
                               f"-o '-p {self.port}' >/dev/null 2>&1"], check=False)
        if done.returncode != 0:
            fail(f"the server does not come back: {log.read_text()}")

    def stop(self):
        self.world.run([pathlib.Path(self.world.env["BIN"]) / "pg_ctl", "stop", "-s", "-m", "immediate", "-D", self.data], check=False)
        if self in self.world.copies:
            self.world.copies.remove(self)


class Session:
    """One psql that stays connected: marks must not cost a process each."""

    def __init__(self, server):
        command = [pathlib.Path(server.world.env["CLIENT_BIN"]) / "psql", "-XAtq", "-d", server.connection,
                   "-v", "ON_ERROR_STOP=1"]
        self.process = subprocess.Popen(server.world.as_owner(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, cwd="/")

    def ask(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            fail(f"the session ended at: {text}")
        return line.strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def receive(world, server):
    """Starts a receiver and waits until it streams."""
    log = world.work / f"receive-{len(world.processes)}-{server.port}.log"
    process = world.spawn([world.keepwell, "--repository", world.work / "repository", "wal", "receive",
                           server.connection, "--dataset", "pitr", "--create-slot", "--tail-every", "1"], log)
    for _ in range(300):
        if log.exists() and "streaming" in log.read_text():
            return process
        if process.poll() is not None:
            break
        time.sleep(0.1)
    fail(f"no stream: {log.read_text() if log.exists() else ''}")


def back_up(world, server):
    """A base backup; by hand as long as the command cannot take one."""
    if world.has_backup:
        world.run_keepwell("pg", "backup", server.connection, "--dataset", "pitr")
        return
    base = world.work / "copies" / "base"
    world.run([pathlib.Path(world.env["CLIENT_BIN"]) / "pg_basebackup", "-d", server.connection, "-D", base / "data",
               "-X", "stream", "-c", "fast"])
    label = dict(line.split(": ", 1) for line in (base / "data/backup_label").read_text().splitlines())
    manifest = json.loads((base / "data/backup_manifest").read_text())
    span = manifest["WAL-Ranges"][-1]
    now = server.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    cluster = {
        "format": 1, "system_identifier": server.sql("SELECT system_identifier FROM pg_control_system()"),
        "server_version_num": int(server.sql("SHOW server_version_num")), "timeline": span["Timeline"],
        "start_lsn": label["START WAL LOCATION"].split()[0], "stop_lsn": span["End-LSN"], "start_time": now,
        "stop_time": now, "wal_segment_size": 16 << 20, "data_directory": str(server.data),
    }
    world.run(["sh", "-c", 'cat >"$0" <<END\n' + json.dumps(cluster) + "\nEND\n", base / "cluster.json"])
    world.run_keepwell("backup", base, "--dataset", "pitr-base")
    world.run(["rm", "-rf", base])


def write_marks(world, server, timeline, count, first, faults):
    """`count` rows, each in a transaction of its own; gives what is known of each. `faults` happen at some of them."""
    session = Session(server)
    session.ask("SELECT 1;")
    marks = []
    for number in range(first, first + count):
        if number - first in faults:
            session.close()
            # What a server had not flushed when it died is written anew, as something else: neither a restore point nor a
            # position behind the last commit is where it was. The commit is.
            marks[-1]["shaky"] = True
            faults[number - first]()
            session = Session(server)
        xid = session.ask(f"INSERT INTO marks VALUES ({number}) RETURNING pg_current_xact_id();")
        lsn = session.ask("SELECT pg_current_wal_insert_lsn();")
        moment = session.ask("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US\"+00\"');")
        name = None
        if number % 10 == 0:
            name = f"mark_{timeline}_{number}"
            session.ask(f"SELECT pg_create_restore_point('{name}');")
        marks.append({"n": number, "xid": xid, "lsn": lsn, "time": moment, "name": name, "timeline": timeline,
                      "shaky": False})
        time.sleep(world.random.choice([0, 0, 0.001, 0.01]))
    session.close()
    return marks


def wait_archived(world, server):
    server.sql("INSERT INTO noise VALUES (0)")
    last = server.sql("SELECT pg_current_wal_flush_lsn()")
    for _ in range(600):
        behind = server.sql(f"SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{last}'")
        if behind != "0":
            return
        time.sleep(0.1)
    fail("the WAL was not archived: " + server.sql("SELECT pg_current_wal_lsn(), * FROM pg_stat_replication")
         + "".join(log.read_text() for log in world.work.glob("receive-*.log")))


def restore(world, options, directory, check=True, snapshot=()):
    source = list(snapshot) if world.has_backup else [f"latest:{world.work / 'copies' / 'base'}"]
    port, socket = free_port(), world.work / "copies"
    done = world.run_keepwell("--json", "pg", "restore", *source, directory, "--start", *options, "--set", f"port={port}",
                              "--set", f"unix_socket_directories={socket}", "--set", "listen_addresses=",
                              "--set", "fsync=off", "--bin-dir", world.env["BIN"], check=check)
    if done.returncode != 0:
        return done
    copy = Server(world, socket, port, directory)
    world.copies.append(copy)
    return copy


def recover_and_compare(world, number, options, expected):
    directory = world.work / "copies" / f"copy-{number}"
    copy = restore(world, options, directory)
    found = copy.sql("SELECT coalesce(max(n), 0) || ' ' || count(*) FROM marks")
    copy.stop()
    world.run(["rm", "-rf", directory, f"{directory}.log"])
    if found != f"{expected} {expected}":
        fail(f"recovered with {options}: expected {expected} rows, found {found} (largest, count)")


def choose(world, marks, newest):
    """A random moment of a line of marks: options of the command, and the last row that must be there."""
    # The row behind the last moment must be in the log, else it is no moment that was reached.
    mark = world.random.choice([mark for mark in marks[1:-1] if not mark["shaky"]])
    kind = world.random.choice(["time", "lsn", "xid", "xid-exclusive", "name"])
    # A time of a timeline that was left since means two pasts, and has to be told which.
    clear = newest and (kind != "time" or mark["timeline"] == mark["line"])
    timeline = [] if clear else ["--timeline", str(mark["line"])]
    if kind == "time":
        return kind, ["--to-time", mark["time"], *timeline], mark["n"]
    if kind == "lsn":
        return kind, ["--to-lsn", mark["lsn"], *timeline], mark["n"]
    if kind == "name":
        named = [m for m in marks[1:-1] if m["name"] and not m["shaky"]]
        mark = world.random.choice(named)
        return kind, ["--to-name", mark["name"], *timeline], mark["n"]
    if kind == "xid":
        return kind, ["--to-xid", mark["xid"], *timeline], mark["n"]
    return kind, ["--to-xid", mark["xid"], "--exclusive", *timeline], mark["n"] - 1


def remove_from_archive(world, timeline):
    """Takes a file from the middle of a timeline's log; gives a function that puts it back."""
    files = sorted((world.work / "repository").glob(f"wal/*/*/{timeline:08x}/0*"))
    if len(files) < 4:
        fail(f"timeline {timeline} has only {len(files)} files: no middle to take one from")
    victim = files[len(files) // 2]
    aside = world.work / "aside"
    victim.rename(aside)
    return lambda: aside.rename(victim)


def refusals(world, lines):
    """What cannot be reached is refused, and the nearest that can be is named, and can be."""
    directory = world.work / "copies" / "refused"
    future = restore(world, ["--to-time", "2199-01-01 00:00:00+00"], directory, check=False)
    if future.returncode == 0 or "The nearest that can be reached" not in future.stderr or "the log ends at" not in future.stderr:
        fail(f"a time in the future was not refused: {future.stderr}")
    for options, message in [
        (["--to-lsn", "FFFF/0"], "the log ends at"), (["--to-xid", "4000000000"], "it is not in the log"),
        (["--to-name", "nobody"], "it is not in the log"), (["--timeline", "77"], "nothing of timeline 77"),
        (["--to-time", "2001-01-01 00:00:00+00"], "the oldest base backup"),
    ]:
        done = restore(world, options, directory, check=False)
        if done.returncode == 0 or message not in done.stderr:
            fail(f"{options} was not refused with `{message}`: {done.stderr}")
    if len(lines) > 1:
        left = restore(world, ["--to-time", lines[1][-3]["time"]], directory, check=False)
        if left.returncode == 0 or "which was left for timeline" not in left.stderr:
            fail(f"a time on a timeline that was left was not refused: {left.stderr}")
    put_back = remove_from_archive(world, 1)
    marks = lines[1]
    beyond = restore(world, ["--to-lsn", marks[-2]["lsn"], "--timeline", "1"], directory, check=False)
    if beyond.returncode == 0 or "is missing" not in beyond.stderr or "The nearest that can be reached: `" not in beyond.stderr:
        fail(f"a moment behind a gap was not refused: {beyond.stderr}")
    nearest = beyond.stderr.split("The nearest that can be reached: `", 1)[1].split("`")[0].split()
    # The end of a base backup, if the gap begins there, and else a position.
    snapshot = nearest[:1] if nearest[-1] == "--to-immediate" else []
    copy = restore(world, [*nearest[len(snapshot):], "--timeline", "1"], directory, snapshot=snapshot)
    rows = copy.sql("SELECT max(n) = count(*) FROM marks")
    copy.stop()
    if rows != "t":
        fail(f"the nearest before the gap has holes: {rows}")
    put_back()
    world.run(["rm", "-rf", directory, f"{directory}.log"])


def position(lsn):
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def the_end(world, line, reported):
    """Recovers to the last commit in the archive; gives its row. Every commit that was reported safe must be there."""
    copy = restore(world, [], world.work / "copies" / "last")
    last = int(copy.sql("SELECT max(n) FROM marks"))
    whole = copy.sql("SELECT max(n) = count(*) FROM marks")
    copy.stop()
    safe = [mark["n"] for mark in line if reported and position(mark["lsn"]) <= position(reported)]
    if whole != "t":
        fail(f"up to row {last} there are holes")
    if safe and last < safe[-1]:
        fail(f"row {safe[-1]} was reported safe, and recovery found {last}")
    print(f"server and receiver died at row {line[-1]['n']}; {safe[-1] if safe else 0} were reported safe, {last} came back", flush=True)
    return last


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--major", type=int, default=15)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--timelines", type=int, default=2)
    parser.add_argument("--marks", type=int, default=300)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"PostgreSQL {args.major}, seed {args.seed}", flush=True)
    world = World(args)
    try:
        run(world)
    finally:
        world.close()


def run(world):
    args = world.args
    server = Server(world, world.env["SOCKET"], world.env["PORT"], world.env["DATA"])
    world.run_keepwell("init")
    server.sql("CREATE TABLE marks (n int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")
    server.sql("CREATE TABLE noise (n int, filler text DEFAULT repeat('x', 900))")
    lines, marks, killed = {}, [], {"server": 0, "receiver": 0}
    born = 0
    for timeline in range(1, args.timelines + 1):
        receiver = [receive(world, server)]
        load = world.spawn(["sh", "-c", f"while :; do '{world.env['CLIENT_BIN']}/psql' -XAtq -d '{server.connection}' -c "
                            "'INSERT INTO noise SELECT generate_series(1, 8000)' >/dev/null; sleep 0.2; done"],
                           world.work / "load.log")

        def kill_receiver():
            killed["receiver"] += 1
            world.end(receiver[0])
            receiver[0] = receive(world, server)

        def kill_server():
            killed["server"] += 1
            server.kill()
            server.start()

        part = args.marks // 3
        for third in range(3):
            first = marks[-1]["n"] + 1 if marks else 1
            faults = {}
            if third > 0:
                share = args.kills // 2 + (args.kills % 2 if third == 1 else 0)
                for number in world.random.sample(range(1, part), min(share, part - 1)):
                    faults[number] = world.random.choice([kill_server, kill_receiver])
            marks += write_marks(world, server, timeline, part, first, faults)
            if third == 0 and (timeline == 1 or world.random.random() < 0.5):
                back_up(world, server)
                base = len(marks)
        lines[timeline] = [dict(mark, line=timeline) for mark in (marks[base:] if timeline == 1 else marks)]
        if timeline == args.timelines:
            # Both die in the middle of the load. What was reported is what counts, and not what was written.
            while not (reported := server.flushed()):
                time.sleep(0.1)
            server.kill()
            world.end(receiver[0])
            world.end(load)
            break
        world.end(load)
        wait_archived(world, server)
        world.end(receiver[0])
        server.stop()
        # The next timeline begins in the past of this one, behind its beginning: the receiver takes none that leaves it out.
        at = world.random.choice([mark for mark in lines[timeline][part:-2] if not mark["shaky"] and mark["n"] > born])
        born = at["n"]
        directory = world.work / "copies" / f"line-{timeline + 1}"
        server = restore(world, ["--to-lsn", at["lsn"], "--timeline", str(timeline)], directory)
        marks = [mark for mark in marks if mark["n"] <= at["n"]]
        print(f"timeline {timeline + 1} branches off at {at['lsn']}, after row {at['n']}", flush=True)
    came_back = the_end(world, lines[args.timelines], reported)
    # What was written behind the last tail that was archived is lost with the server; it is no moment to recover to.
    lines[args.timelines] = [mark for mark in lines[args.timelines] if mark["n"] <= came_back]
    base_of_first = lines[1][0]["n"]
    began, kinds = time.monotonic(), {}
    for number in range(args.moments):
        timeline = world.random.randint(1, args.timelines)
        line = [mark for mark in lines[timeline] if mark["n"] >= base_of_first]
        kind, options, expected = choose(world, line, timeline == args.timelines)
        recover_and_compare(world, number, options, expected)
        kinds[kind] = kinds.get(kind, 0) + 1
    took = time.monotonic() - began
    refusals(world, lines)
    summary = ", ".join(f"{count} by {kind}" for kind, count in sorted(kinds.items()))
    print(f"PostgreSQL {args.major}: {args.moments} moments on {args.timelines} timelines ended exactly there ({summary}), "
          f"{took / max(args.moments, 1):.1f} s each; {killed['server']} servers and {killed['receiver']} receivers were "
          f"killed on the way; the end of the log and every refusal too")


if __name__ == "__main__":
    main()
