import pytest

from motionmae.distributed.network import ipv4_of_interface


def test_the_address_of_an_interface():
    assert ipv4_of_interface("lo") == "127.0.0.1"
    with pytest.raises(OSError, match="No such device"):
        ipv4_of_interface("nosuch0")
