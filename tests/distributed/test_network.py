import pytest

from motionmae.distributed.network import address_of


def test_the_address_of_an_interface():
    assert address_of("lo") == "127.0.0.1"
    with pytest.raises(OSError, match="No such device"):
        address_of("nosuch0")
