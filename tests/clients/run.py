#!/usr/bin/env python3
"""Runs other libraries, unmodified, on the simulated gateway, and prints what each of them did.

    tests/clients/run.py [NAME...]

It installs them from their registries into target/clients. Each bot starts two shards, changes its
presence, survives a cut, op 7 and op 9, answers a message with a reply, an edit, a reaction, a file
and a deletion, and answers a slash command; some also complete one, and answer a button and a modal.
It exits with 1 if one of them fails in any of that, or breaks a rule.
"""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "target" / "clients"
SIM = ROOT / "target" / "debug" / "gateway-sim"

# The kind, the package and its version (of the Rust ones in rust/Cargo.toml), and whether the bot also
# has components.
LIBRARIES = {
    "discord.js": ("node", "discord.js", "14.28.1", True),
    "discord.py": ("python", "discord.py", "2.7.1", True),
    "disnake": ("python", "disnake", "2.12.2", True),
    "nextcord": ("python", "nextcord", "2.6.0", False),
    "py-cord": ("python", "py-cord", "2.8.1", False),
    "hikari": ("python", "hikari", "2.7.0", False),
    "interactions.py": ("python", "discord-py-interactions", "5.16.0", False),
    "eris": ("node", "eris", "0.18.0", False),
    "oceanic.js": ("node", "oceanic.js", "1.15.0", False),
    "serenity": ("rust", "serenity", None, False),
    "twilight": ("rust", "twilight", None, False),
}

STEPS = [
    "start", "presence", "cut", "op 7", "op 9", "reply", "edit", "reaction", "file", "delete",
    "command", "autocomplete", "button", "modal",
]

# Libraries wait up to a minute before they connect again.
PATIENCE = 90


class Process:
    """A program whose lines are kept."""

    def __init__(self, command, log, **options):
        self.lines = []
        self.log = open(log, "w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, bufsize=1, **options,
        )
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.log.write(line)
            self.log.flush()
            self.lines.append(line.rstrip())

    def find(self, pattern, since=0):
        return next((line for line in self.lines[since:] if re.search(pattern, line)), None)

    def wait(self, pattern, since=0, patience=PATIENCE):
        """The first line since a given one that matches, if it is printed in time."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if line := self.find(pattern, since):
                return line
            time.sleep(0.05)
        return None

    def order(self, text):
        self.process.stdin.write(text + "\n")

    def end(self, patience=10):
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def install(kind, package, version):
    """Installs a library. Returns the command that starts its bot."""
    name = re.sub(r"\W", "_", package)
    if kind == "python":
        place = TARGET / name
        python = place / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"{package}=={version}"], check=True)
        return [str(python), str(HERE / "python" / f"{name}_bot.py")]
    if kind == "node":
        place = TARGET / "node"
        place.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", place, f"{package}@{version}"]
        subprocess.run(npm, check=True)
        return ["node", str(HERE / "node" / f"{name}.js")]
    build = ["cargo", "build", "--quiet", "--bin", name, "--manifest-path", HERE / "rust" / "Cargo.toml"]
    subprocess.run([*build, "--target-dir", TARGET / "rust"], check=True)
    return [str(TARGET / "rust" / "debug" / name)]


def recover(sim, fault, shard, expected):
    since = len(sim.lines)
    sim.order(f"fault {fault}@{shard}/2")
    return bool(sim.wait(rf"shard {shard}/2 +{expected}", since))


def chat(sim):
    """Sends messages until the bot answers: the bot may be reconnecting."""
    for _ in range(PATIENCE // 3):
        since = len(sim.lines)
        sim.order("chat !ping")
        if sim.wait(r'post \d+ "pong"', since, 3):
            return since
    return None


def use(sim, order, expected):
    since = len(sim.lines)
    sim.order(order)
    return bool(sim.wait(expected, since, 10))


def play(sim, has_components):
    """What a bot did, step by step, up to the first that it did not."""
    yield "start", all(sim.wait(rf"shard {shard}/2 +identify") for shard in (0, 1))
    yield "presence", all(sim.wait(rf"shard {shard}/2 +command op 3") for shard in (0, 1))
    yield "cut", recover(sim, "cut", 0, "resume")
    yield "op 7", recover(sim, "reconnect", 1, "resume")
    # Not every library respects the identify limit after an op 9.
    time.sleep(6)
    yield "op 9", recover(sim, "invalid-session=false", 0, "identify")

    since = chat(sim)
    yield "reply", since is not None
    message = r"/channels/\d+/messages"
    for step, request in [
        ("edit", rf"PATCH {message}/\d+ 200"),
        ("reaction", rf"PUT {message}/\d+/reactions/.*/@me 204"),
        ("file", rf'POST {message} 200 \+ "cat.txt" \(4 bytes\)'),
        ("delete", rf"DELETE {message}/\d+ 204"),
    ]:
        yield step, bool(sim.wait(request, since, 20))

    callback = r"POST /interactions/\d+/\w+/callback 20[04]"
    yield "command", use(sim, "command hello", callback)
    if has_components:
        completion = 'autocomplete ask what {"what": "a"}'
        yield "autocomplete", use(sim, completion, callback)
        use(sim, 'command ask {"what": "apple"}', callback)
        yield "button", use(sim, "press go", callback)
        yield "modal", use(sim, 'submit form {"why": "because"}', r'post \d+ "because"')


def test(name):
    """The steps of a library that went well, its version, and what else there was to see."""
    kind, package, version, has_components = LIBRARIES[name]
    command = install(kind, package, version)
    certificate = TARGET / "certificate.pem"
    # This library supports only HTTPS.
    tls = ["--tls", "--certificate", certificate] if name == "eris" else []
    flags = ["--shards", "2", "--guilds", "2", "--members", "5"]
    sim = Process([SIM, *flags, *tls], TARGET / f"{name}.sim.log")
    rest, token = (sim.wait(rf"^{word} ", patience=10) for word in ("rest", "token"))
    if not (rest and token):
        sys.exit(f"the simulator did not start: {sim.lines}")
    environment = {
        **os.environ,
        "SIM": rest.split()[1].removesuffix("/api/v10"),
        "TOKEN": token.split()[1],
        "NODE_PATH": str(TARGET / "node" / "node_modules"),
        "NODE_EXTRA_CA_CERTS": str(certificate),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    bot = Process(command, TARGET / f"{name}.log", env=environment)
    done = set()
    try:
        for step, succeeded in play(sim, has_components):
            if not succeeded:
                break
            done.add(step)
    finally:
        bot.process.terminate()
        bot.end()
        sim.order("quit")
    is_lawful = sim.end() == 0
    version = (bot.find(r"^version ") or "version ?").split()[1]
    notes = {line.split("WARNING ")[1].split(";")[0] for line in sim.lines if "WARNING" in line}
    notes |= {line.split("VIOLATION ")[1] for line in sim.lines if "VIOLATION" in line}
    expected = set(STEPS if has_components else STEPS[:11])
    return expected <= done and is_lawful, version, done, expected, notes


def main():
    names = sys.argv[1:] or list(LIBRARIES)
    if unknown := set(names) - set(LIBRARIES):
        sys.exit(f"unknown: {', '.join(unknown)}; allowed: {', '.join(LIBRARIES)}")
    TARGET.mkdir(parents=True, exist_ok=True)
    build = ["cargo", "build", "--quiet", "--features", "gateway-sim", "--bin", "gateway-sim"]
    subprocess.run(build, cwd=ROOT, check=True)

    print("| library | version | " + " | ".join(STEPS) + " | warned of |")
    print("|---|---" + "|---" * len(STEPS) + "|---|")
    is_good = True
    for name in names:
        is_well, version, done, expected, notes = test(name)
        is_good &= is_well
        marks = ["yes" if step in done else "**no**" if step in expected else "-" for step in STEPS]
        print(f"| {name} | {version} | {' | '.join(marks)} | {'; '.join(sorted(notes))} |", flush=True)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
