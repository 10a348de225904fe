"""An installation that is interrupted goes on when its cause is gone."""


def test_a_full_disk_fails_the_installation_and_a_second_try_completes_it(root, package):
    root.ok("mkdir", "-p", "/packages")
    (root.path / "packages" / package.name).write_bytes(package.read_bytes())
    root.ok("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "tmpfs", "/var/log")
    done = root.run("dpkg", "-i", f"/packages/{package.name}")
    assert done.returncode != 0, done.stdout
    assert "No space left on device" in done.stdout
    assert root.ok("dpkg-query", "-W", "-f", "${db:Status-Status}", "mailgate") == "half-configured"
    assert root.init("status").returncode == 3
    root.ok("umount", "/var/log")
    done = root.run("dpkg", "--configure", "-a")
    assert done.returncode == 0, done.stdout
    assert "mailgate runs, and takes mail for postmaster@fresh.test" in done.stdout
    assert root.init("status").returncode == 0


def test_configured_again_it_goes_on(root):
    root.ok("dpkg", "--purge", "mailgate")
    (package,) = (root.path / "packages").iterdir()
    root.ok("dpkg", "--unpack", f"/packages/{package.name}")
    assert root.run("dpkg", "--configure", "mailgate").returncode == 0
    assert root.init("status").returncode == 0
    done = root.run("dpkg-reconfigure", "mailgate")
    assert done.returncode == 0, done.stdout
    assert root.init("status").returncode == 0


def test_a_broken_configuration_at_the_installation_installs_it_and_starts_nothing(root):
    root.ok("dpkg", "--remove", "mailgate")
    broken = root.path / "etc/mailgate/conf.d/broken.toml"
    broken.write_text('[session]\ntiemout = "5m"\n', encoding="utf-8")
    (package,) = (root.path / "packages").iterdir()
    done = root.run("dpkg", "-i", f"/packages/{package.name}")
    assert done.returncode == 0, done.stdout
    assert "it was not started" in done.stdout
    assert "session.tiemout: unknown key" in done.stdout
    assert root.init("status").returncode == 3
