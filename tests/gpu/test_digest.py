"""Do the kernels that make digests compute what they are said to, for all alignments?"""

from __future__ import annotations

import numpy as np

from hjgc.runtime.backends.cuda_digest import Digests, Place, item_of
from hjgc.runtime.backends.cuda_driver import Driver
from tests.runtime.digests import digest

SIZE = 1 << 22
PLACES: tuple[Place, ...] = (
    (0, SIZE, SIZE, 1),
    (256, 4, 4, 1),
    (256, 1024, 512, 33),
    (4096, 65540, 65536, 32),
    (1, 7, 5, 100),
    (258, 2, 2, 1),
    (256, 100, 99, 1),
)


def test_digests_are_those_of_the_bytes() -> None:
    driver = Driver()
    stream, memory = driver.make_stream(), driver.allocate(SIZE)
    data = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    driver.write(memory, data, stream)
    digests = Digests(driver, stream)

    def expected(place: Place) -> int:
        address, pitch, width, rows = place
        parts = [data[address + i * pitch : address + i * pitch + width] for i in range(rows)]
        return digest(np.concatenate(parts), item_of(place))

    here = [(memory + address, pitch, width, rows) for address, pitch, width, rows in PLACES]
    assert digests.of(here) == [expected(place) for place in PLACES]
    data[SIZE // 2] ^= 1
    driver.write(memory, data, stream)
    assert digests.of(here[:1]) == [expected(PLACES[0])]
    digests.close()
    driver.free(memory)
    driver.drop_stream(stream)
    driver.close()
