"""The energy that a job's device took, where the device keeps a counter of it.

NVIDIA's GPUs count millijoules since the driver was loaded (NVML, Volta and newer). Intel's and
AMD's processors count microjoules (RAPL), which Linux shows below ``/sys/class/powercap``, often to
root only. Both count all that ran on the GPU, or on the processor, in the meantime: where a job had
it to itself, that is the job's.
"""

import re
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
LOOK = 60.0
"""Seconds between two looks at a processor's counter, which starts again at 0 every quarter of an
hour or so under full load, and would do so unseen."""

COVERS_GPUS = "all that ran on the job's GPUs meanwhile"
COVERS_PROCESSORS = "all that ran on the machine's processors meanwhile"


@dataclass(frozen=True)
class Energy:
    """What a job's device took.

    Attributes:
        gpus: GPUs that this process has computed on.
        joules: since the meter was started; None where the device keeps no counter.
        covers: in words, what the counter has counted; None where there is none.
    """

    gpus: int
    joules: float | None
    covers: str | None


class EnergyMeter:
    """Reads the counters now, and tells later what was taken since.

    The counters of all GPUs are read at first, since which of them is the job's is only known when
    it has computed on it: CUDA numbers them in an order of its own. torch is not imported here.

    Args:
        powercap: where Linux shows the processors' counters.
        look: seconds between two looks at them.
    """

    def __init__(self, powercap: Path = POWERCAP, look: float = LOOK) -> None:
        self._gpus = _gpu_counters()
        self._processors = [
            counter for zone in _packages(powercap) if (counter := _Counter.open(zone)) is not None
        ]
        self._ended = threading.Event()
        if self._processors:
            threading.Thread(target=self._keep_looking, args=(look,), daemon=True).start()

    def stop(self) -> None:
        """Stop looking at the counters."""
        self._ended.set()

    def read(self) -> Energy:
        """Give the energy since the start, of this process's GPU or else of the processors."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            return self._of_gpu(f"GPU-{getattr(properties, 'uuid', None)}")
        joules = self._of_processors()
        return Energy(0, joules, None if joules is None else COVERS_PROCESSORS)

    def _of_gpu(self, uuid: str) -> Energy:
        # A slice of a GPU (MIG) has an identifier of its own and no counter.
        before, now = self._gpus.get(uuid), _gpu_counters().get(uuid)
        if before is None or now is None or now < before:
            return Energy(1, None, None)
        return Energy(1, (now - before) / 1e3, COVERS_GPUS)

    def _of_processors(self) -> float | None:
        taken = [counter.taken() for counter in self._processors]
        if not taken or None in taken:
            return None
        return sum(joules for joules in taken if joules is not None)

    def _keep_looking(self, look: float) -> None:
        while not self._ended.wait(look):
            for counter in self._processors:
                counter.taken()


def _gpu_counters() -> dict[str, int]:
    """Read the energy counter of every GPU that has one, in millijoules, by the GPU's UUID."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return {}
    found: dict[str, int] = {}
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid: Any = pynvml.nvmlDeviceGetUUID(handle)
                name = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
                found[name] = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except pynvml.NVMLError:
                continue  # older than Volta, or not ours to ask
    except pynvml.NVMLError:
        return found
    finally:
        pynvml.nvmlShutdown()
    return found


def _packages(powercap: Path) -> list[Path]:
    """List the zones of whole processors; those of cores and memory lie within them."""
    try:
        zones = sorted(zone for zone in powercap.iterdir() if re.search(r"rapl:\d+$", zone.name))
        # The platform's zone (psys) covers the processors once more.
        return [zone for zone in zones if _text(zone / "name").startswith("package")]
    except OSError:
        return []


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()


@dataclass
class _Counter:
    """One processor's counter, which starts again at 0 when it has reached its range."""

    zone: Path
    range: int
    last: int
    sum: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, zone: Path) -> "_Counter | None":
        try:
            most = int(_text(zone / "max_energy_range_uj"))
            return cls(zone, most, int(_text(zone / "energy_uj")))
        except (OSError, ValueError):
            return None  # newer kernels show it to root only

    def taken(self) -> float | None:
        """Give the joules since it was opened; None where it cannot be read any more."""
        with self._lock:
            try:
                now = int(_text(self.zone / "energy_uj"))
            except (OSError, ValueError):
                return None
            self.sum += now - self.last if now >= self.last else now - self.last + self.range
            self.last = now
            return self.sum / 1e6
