"""Hardware that a plan can name: peak speed and memory, each with its source."""

from dataclasses import dataclass

CPU = "cpu"
# Two units that multiply and add 8 float32 numbers in each of 2.5e9 cycles per second: AVX2, as most CPUs have it. The
# number of cores is that of this machine.
PEAK_OF_A_CORE = 2 * 2 * 8 * 2.5e9


@dataclass(frozen=True)
class Hardware:
    """A GPU.

    Attributes:
        title: Name for the terminal.
        device_name: Part of the name that its driver reports, which no other GPU of the table has.
        peak_flops: Operations per second of dense matrix products in bfloat16, with sums in float32.
        memory_gib: Memory that torch reports as the total capacity, in GiB.
        link: Bytes per second that a GPU can send to the others of its node: NVLink, or PCIe.
    """

    title: str
    device_name: str
    peak_flops: float
    memory_gib: float
    link: float


# Speed and links: the data sheets of NVIDIA, whose larger numbers for sparse matrices are halved. Memory: what torch
# prints as "total capacity" when it runs out, in issues of public projects: the data sheets name more.
HARDWARE = {
    "h100": Hardware("H100 SXM", "H100", 989.4e12, 79.1, 450e9),  # nvidia.com/en-us/data-center/h100
    "h200": Hardware("H200 SXM", "H200", 989.4e12, 139.8, 450e9),  # nvidia.com/en-us/data-center/h200
    "a100": Hardware("A100 80GB SXM", "A100", 312e12, 79.1, 300e9),  # nvidia.com/en-us/data-center/a100
    "l40s": Hardware("L40S", "L40S", 362e12, 44.4, 32e9),  # nvidia.com/en-us/data-center/l40s
    "rtx4090": Hardware("RTX 4090", "RTX 4090", 165.2e12, 23.5, 32e9),  # NVIDIA's Ada white paper 1.1
}
CHOICES = (*HARDWARE, CPU)


def hardware_of(device_name: str) -> Hardware | None:
    """Return the GPU of a name that its driver reports, or None if the table does not have it."""
    return next((gpu for gpu in HARDWARE.values() if gpu.device_name in device_name), None)
