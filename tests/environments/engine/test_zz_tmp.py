import pytest
from tests.environments.engine.test_pypi import *
@pytest.mark.parametrize("r",[["hello-noarch>=9"],["needs-old-hello"],["sdist-only"],["no-such-project-anywhere"],["tinymissing"],["tinyfuture"],["tinyutil>=99"],["tinyplot==1.0","tinyplot==1.1"]])
def test_x(resolver,part,r):
    try: lock(resolver, part("python","hello-noarch-2.0"),*r)
    except PypiError as e: print("MSG",r,"|",e.message,"|",e.hint)
