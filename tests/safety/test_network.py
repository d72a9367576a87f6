"""A retraining, a model loaded and asked, a look at the machine: no connection beyond this machine.

strace follows the run and every process it starts, whatever its language, and writes down where each asks the kernel to
connect or to send: nothing can be missed, and a lookup of a name counts, because it is a datagram to a server.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import imports
import pytest
import yaml

from perfusion.world.marketplace import write_marketplace

STRACE = shutil.which("strace")
RUN = """
import sys
from pathlib import Path
from flows.environment import quieten
quieten(Path("."))
from flows import server
server.PATIENCE = 900.0  # traced, on a busy machine
ready = server.start_server()
from flows.retrain import retrain
ready()
state = retrain(*sys.argv[1:5], return_state=True)
print(state.name, state.message)
sys.path.insert(0, "tests")  # what serves: registered, loaded in a process of its own, asked
import pandas
from tiny_models import make_store
from tasks.models.clean_process import load_in_clean_process
Path(sys.argv[5]).mkdir()
registry = make_store(Path(sys.argv[5]))
asked = pandas.DataFrame([dict(user_id="u1", prompt="dress", n=1, seed=0)])
print("drew", len(load_in_clean_process("models:/shop-generator/1", asked, registry.client.tracking_uri)))
from flows.cli import main
main(["doctor", "--workspace", sys.argv[3]])
"""
_FAMILY = re.compile(r"sa_family=(AF_\w+)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


def addresses(trace: str) -> Counter[str]:
    """How often each address outside this machine was asked for."""
    found: Counter[str] = Counter()
    for line in trace.splitlines():
        family = _FAMILY.search(line)
        if family is None or family[1] in ("AF_UNIX", "AF_NETLINK", "AF_UNSPEC"):
            continue
        address = _ADDRESS.search(line)
        name = (address[1] or address[2]) if address else line
        if not name.startswith(("127.", "::ffff:127.")) and name != "::1":
            found[name] += 1
    return found


def traced(script: str, file: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of Python under strace; what it and its children asked the network for is in `file`."""
    if STRACE is None:
        pytest.skip("strace is not installed: Debian's package of that name")
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    command = [STRACE, "-f", "--seccomp-bpf", "-qq", "-s", "0", "-e", calls, "-o", str(file)]
    done = subprocess.run(
        [*command, sys.executable, "-c", script, *arguments], cwd=imports.REPOSITORY, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=3000,
    )  # fmt: skip
    if not file.exists() or ("ptrace" in done.stderr and "not permitted" in done.stderr):
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[-200:]}")
    return done


def test_the_trace_sees_children_and_datagrams(tmp_path: Path) -> None:
    """192.0.2.0/24 and 2001:db8::/32 are for documentation: nobody is there."""
    script = "import subprocess, sys; subprocess.run(['sh', '-c', f'{sys.executable} -I -c \"$CHILD\"'])"
    child = (
        "import socket\nfor f, a in ((2, '192.0.2.1'), (10, '2001:db8::1'), (2, '127.0.0.1')):\n"
        " s = socket.socket(f, socket.SOCK_DGRAM)\n try: s.sendto(b'x', (a, 9))\n except OSError: pass\n"
    )
    traced(script, tmp_path / "trace", CHILD=child)
    assert addresses((tmp_path / "trace").read_text()) == {"192.0.2.1": 1, "2001:db8::1": 1}


@pytest.mark.slow
@pytest.mark.drill
def test_a_run_connects_to_nobody(tmp_path: Path) -> None:
    write_marketplace(tmp_path / "data", users=40, seed=0)
    params = yaml.safe_load((imports.REPOSITORY / "params" / "smoke.yaml").read_text())
    for section in (params["clip"], params["pickscore"], params["reward"], params["diffusion"]):
        section["optimiser"] |= {"steps": 2, "warmup": 0}
    params["diffusion"]["codec"]["optimiser"] |= {"steps": 2, "warmup": 0}
    params["clip"]["pictures"] = params["diffusion"]["pictures"] = 200
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(params))
    given = [str(tmp_path / name) for name in ("tiny.yaml", "data", "workspace", "mlruns", "store")]
    done = traced(RUN, tmp_path / "trace", *given, PREFECT_HOME=str(tmp_path / "prefect"))
    said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Refused not promoted: the reward gate" in done.stdout, said  # two steps teach nothing
    assert "drew 1" in done.stdout, said
    assert "telemetry" in done.stdout, said
    assert (tmp_path / "workspace" / "work" / "evaluation" / "reward").is_dir(), said
    trace = (tmp_path / "trace").read_text()
    assert len(re.findall(r"inet_addr\(\"127", trace)) > 10, "the trace saw the run talk to its own server"
    assert not addresses(trace), said
