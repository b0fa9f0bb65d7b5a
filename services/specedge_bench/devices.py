"""What the machines of a cell can do at best: memory bandwidth, matrix rate and price, by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specedge.errors import SettingsError


class UnknownDevice(SettingsError):
    """The named device is not in the table."""


class BadPrice(SettingsError):
    """A price is not NAME=DOLLARS_PER_S."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator or CPU, by its data sheet.

    Attributes:
        memory_bytes_per_s: peak bandwidth of the memory that holds weights and KV.
        flops: peak dense bf16 operations per second (float32 accumulation, no sparsity).
        memory_bytes: capacity of that memory.
        price_per_s: what one second costs, in dollars; None where no price is built in.
    """

    name: str
    memory_bytes_per_s: float
    flops: float
    memory_bytes: float
    price_per_s: float | None = None


# Bandwidth, rate and capacity are the makers' data sheets. The three prices are those of the published SpecEdge
# evaluation; the others differ so much between providers that the user has to name them.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("A100-40", 1.555e12, 312e12, 40e9, 0.001125),
        Device("A100-80", 2.039e12, 312e12, 80e9, 0.001402777778),
        Device("H100", 3.35e12, 989e12, 80e9),
        Device("H200", 4.8e12, 989e12, 141e9),
        Device("RTX 4090", 1.008e12, 165.2e12, 24e9, 0.00009722222),
        # 64 GB module; the GPU's 85 dense int8 TOPS are 42.5 at 16 bits.
        Device("Jetson AGX Orin", 0.2048e12, 42.5e12, 64e9),
        # A desktop with two channels of DDR5-5600 and eight AVX-512 cores at 4 GHz.
        Device("CPU", 0.0896e12, 1.0e12, 64e9),
    )
}


def find_device(name: str) -> Device:
    """The device of this name, in any case and with any of space, dash and underscore.

    Raises:
        UnknownDevice: names the known ones.
    """
    wanted = slug(name)
    for device in DEVICES.values():
        if slug(device.name) == wanted:
            return device
    raise UnknownDevice(f"device {name}: known are {', '.join(DEVICES)}")


def price_table(given: Sequence[str] = ()) -> dict[str, float]:
    """Dollars per second by device: the built-in prices, and those given as NAME=DOLLARS_PER_S, which replace them.

    Raises:
        BadPrice: names the text.
    """
    prices = {device.name: device.price_per_s for device in DEVICES.values() if device.price_per_s is not None}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            price = float(value)
        except ValueError:
            price = math.nan
        if not name.strip() or not 0 <= price < math.inf:
            raise BadPrice(f"price {text!r}: it must be NAME=DOLLARS_PER_S with a number of at least 0")
        known = next((device for device in DEVICES if slug(device) == slug(name)), name.strip())
        prices[known] = price
    return prices


def price_of(prices: Mapping[str, float], device: str) -> float:
    """Dollars per second of a device, its name spelt in any way; NaN if it has no price."""
    return next((price for name, price in prices.items() if slug(name) == slug(device)), math.nan)


def slug(name: str) -> str:
    """Lower case with single dashes, as profile files are named."""
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())
