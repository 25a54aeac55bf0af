#!/usr/bin/env python3
"""The page to draw on, in a real browser on a real model: page_test.py BIN_DIR [unittest arguments ...]"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

import webdriver

BIN = pathlib.Path(sys.argv[1])
SKIPPED = 77  # to ctest
TAB, SPACE, LEFT, RIGHT, DOWN, SHIFT, DELETE = "\ue004", " ", "\ue012", "\ue014", "\ue015", "\ue008", "\ue017"

# By hand, not the page's own samples.
STROKES = {
    0: [[(.5, .2), (.36, .27), (.3, .42), (.3, .6), (.38, .75), (.5, .8), (.62, .74), (.68, .6), (.68, .4), (.62, .27), (.5, .2)]],
    1: [[(.53, .18), (.52, .4), (.5, .6), (.49, .82)]],
    3: [[(.33, .25), (.45, .18), (.6, .2), (.65, .32), (.58, .44), (.46, .48), (.6, .52), (.68, .65), (.6, .78), (.45, .82),
         (.32, .76)]],
    7: [[(.28, .22), (.5, .22), (.7, .21), (.6, .42), (.52, .6), (.46, .82)]],
}


def train(out, data, *flags):
    subprocess.run([BIN / "millrace", "train", "--data-dir", data, "--out", out, "--no-serving", "--workers", "2", *flags],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=240)


def eventually(read, holds, what, seconds=20):
    """Waits until `holds` of what `read` returns."""
    end = time.monotonic() + seconds
    while not holds(value := read()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: {value!r}")
        time.sleep(0.02)
    return value


class Server:
    def __init__(self, repository, http="127.0.0.1:0"):
        self._process = subprocess.Popen(
            [BIN / "millrace-model", "--repository", repository, "--listen", "127.0.0.1:0", "--http-listen", http,
             "--drain-seconds", "0", "--poll-interval-ms", "50"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.http = re.search(r"http=(\S+)", self._process.stdout.readline())[1]

    def stop(self):
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="millrace-page-")))
        mnist = os.environ.get("MILLRACE_DATA_DIR")  # half of it will do
        data = [mnist, "--validation-count", "30000"] if mnist else ["synthetic:train=20000,test=1000,seed=1"]
        train(cls.scratch / "job", *data, "--epochs", "2")
        train(cls.scratch / "other", "synthetic:train=256,test=64,size=20", "--epochs", "1", "--model", "autoencoder",
              "--model-name", "sketches")
        cls.first, cls.second = sorted((cls.scratch / "job/models/mnist").glob("[0-9]*"), key=lambda path: int(path.name))
        cls.repository = cls.scratch / "models"
        (cls.repository / "mnist").mkdir(parents=True)
        cls.publish(cls.first)
        cls.server = Server(cls.repository)
        cls.addClassCleanup(lambda: cls.server.stop())
        cls.browser = webdriver.Browser()
        cls.addClassCleanup(cls.browser.close)

    @classmethod
    def publish(cls, version):
        target = cls.repository / version.parent.name / version.name
        target.parent.mkdir(exist_ok=True)
        version.rename(target)

    def setUp(self):
        self.browser.open(f"http://{self.server.http}/")
        self.await_text("#serving", lambda text: "version" in text)

    def tearDown(self):
        self.assertEqual(self.browser.complaints(), [])
        origins = self.browser.run("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)")
        self.assertEqual(set(origins), {f"http://{self.server.http}"})

    def await_text(self, selector, holds):
        return eventually(lambda: self.browser.text(selector), holds, selector)

    def await_label(self, digit):
        self.await_text("#label", lambda text: text == str(digit))

    def focus(self):
        return self.browser.run("return document.activeElement.id")

    def pixels(self, selector):
        """Red, green, blue, opacity."""
        data = self.browser.run("const c = document.querySelector(arguments[0]); return [...c.getContext('2d')"
                                ".getImageData(0, 0, c.width, c.height).data]", selector)
        return [tuple(data[i:i + 4]) for i in range(0, len(data), 4)]

    def test_digits_drawn_by_mouse_are_read(self):
        for digit, strokes in STROKES.items():
            with self.subTest(digit=digit):
                for stroke in strokes:
                    self.browser.draw("#pad", stroke)
                self.await_label(digit)
                shares = [float(text.rstrip("\u00a0%")) for text in self.browser.run(
                    "return [...document.querySelectorAll('.share')].map(share => share.textContent)")]
                self.assertEqual(max(range(10), key=shares.__getitem__), digit)
                self.assertAlmostEqual(sum(shares), 100, delta=1)
                self.assertRegex(self.browser.text("#latency"), r"Answered in [\d.]+ ms by version \d+: .*the model [\d.]+ ms")
                self.browser.click("#clear")
                self.await_label("–")

    def test_the_picture_is_shown_as_the_model_sees_it(self):
        self.browser.draw("#pad", [(.06, .05), (.06, .2)])  # in a corner
        self.await_text("#label", str.isdigit)
        lit = [i for i, (red, _, _, _) in enumerate(self.pixels("#seen")) if red > 100]
        self.assertEqual(len(self.pixels("#seen")), 28 * 28)
        rows, columns = [i // 28 for i in lit], [i % 28 for i in lit]
        self.assertIn(max(rows) - min(rows), range(17, 20))  # scaled to 20 pixels
        self.assertIn((min(columns) + max(columns)) // 2, (13, 14))  # and centred

    def test_a_finger_and_a_pen_draw_too(self):
        for pointer in ("touch", "pen"):
            self.browser.draw("#pad", STROKES[7][0], pointer)
            self.await_label(7)
            self.browser.click("#undo")
            self.await_label("–")

    def test_by_keyboard_alone(self):
        self.browser.keys(TAB)
        self.assertEqual(self.focus(), "pad")
        self.browser.keys("7")
        self.await_label(7)
        self.browser.keys(DELETE)
        self.await_label("–")
        self.browser.keys(SPACE, *[DOWN] * 16, SPACE)
        self.await_label(1)
        self.browser.keys("z")
        self.await_label("–")
        self.browser.keys("3")
        self.await_label(3)
        self.await_text("#said", lambda text: re.fullmatch(r"3, [\d.]+\s%", text))
        for _ in range(40):  # past the buttons to
            if self.focus() == "explain":
                break
            self.browser.keys(TAB)
        self.browser.keys(SPACE)
        self.await_text("#because", lambda text: "speak for “3”" in text)

    def test_every_sample_is_read(self):
        for digit in range(10):
            with self.subTest(digit=digit):
                self.browser.click(f"#samples button:nth-of-type({digit + 1})")
                self.await_label(digit)

    def test_why(self):
        self.browser.click("#samples button:nth-of-type(8)")
        self.await_label(7)
        self.browser.click("#explain")
        text = self.await_text("#because", lambda text: "speak for “7”" in text)
        self.assertLess(float(re.search(r"but for ([\d.e-]+)\. ", text)[1]), 0.1)
        self.assertTrue(any(red > 200 and blue < 100 for red, _, blue, _ in self.pixels("#seen")))
        self.browser.click("#bars li:nth-child(2) button")
        self.await_text("#because", lambda text: "speak for “1”" in text)
        self.assertEqual(self.browser.run("return [...document.querySelectorAll('#bars [aria-pressed=true] .digit')]"
                                          ".map(digit => digit.textContent)"), ["1"])
        self.browser.run("const s = document.getElementById('method'); s.value = 'saliency'; s.dispatchEvent(new Event('change'))")
        self.await_text("#because", lambda text: "would change “1”" in text)
        self.browser.click("#explain")
        self.await_text("#because", lambda text: text.startswith("Colours the pixels"))
        self.assertTrue(all(red == blue for red, _, blue, _ in self.pixels("#seen")))

    def test_what_a_screen_reader_gets(self):
        names = {selector: self.browser.role_and_name(selector) for selector in
                 ("#pad", "#clear", "#undo", "#explain", "#method", "#seen", "#samples", "#samples button", "#bars")}
        self.assertEqual(names, {
            "#pad": ("application", "Draw a digit here"), "#clear": ("button", "Clear"), "#undo": ("button", "Undo"),
            "#explain": ("checkbox", "Show why"), "#method": ("combobox", "by"),
            "#seen": ("image", "The picture as the model sees it"), "#samples": ("group", "Or have one drawn:"),
            "#samples button": ("button", "Draw a 0"), "#bars": ("list", "")})
        self.assertEqual(self.browser.run("return document.querySelector('#said').getAttribute('aria-live')"), "polite")

    def test_the_version_ticks_up_and_the_drawing_is_asked_about_again(self):
        self.assertEqual(self.browser.text("#version"), self.first.name)
        self.browser.draw("#pad", STROKES[1][0])
        self.await_text("#latency", lambda text: f"by version {self.first.name}:" in text)
        self.publish(self.second)
        self.await_text("#version", lambda text: text == self.second.name)
        self.await_text("#latency", lambda text: f"by version {self.second.name}:" in text)
        self.await_label(1)

    # These change what serves, and come last.
    def test_z1_another_model_is_named_as_what_it_is(self):
        self.assertTrue(self.browser.run("return document.getElementById('choice').hidden"))
        self.publish(next((self.scratch / "other/models/sketches").glob("[0-9]*")))
        eventually(lambda: self.browser.run("return document.getElementById('choice').hidden"), lambda hidden: not hidden, "choice")
        self.assertIn("mnist, version", self.browser.text("#serving"))
        self.browser.run("const s = document.getElementById('model'); s.value = 'sketches'; s.dispatchEvent(new Event('change'))")
        note = self.await_text("#note", lambda text: text != "")
        self.assertIn("takes 1 × 20 × 20 pixels, not MNIST's 1 × 28 × 28", note)
        self.assertIn("does not name a digit", note)
        self.browser.draw("#pad", STROKES[7][0])
        self.await_text("#sure", lambda text: re.fullmatch(r"error 0\.\d{4}", text))
        self.assertEqual(len(self.pixels("#rebuilt")), 20 * 20)
        self.assertTrue(any(red > 0 for red, _, _, _ in self.pixels("#rebuilt")))

    def test_z2_a_service_that_goes_away_is_waited_for(self):
        http = self.server.http
        self.server.stop()
        self.browser.draw("#pad", STROKES[1][0])
        self.await_text("#trouble", lambda text: text == "The service does not answer. Trying again.")
        type(self).server = Server(self.repository, http)
        self.await_label(1)
        self.await_text("#trouble", lambda text: text == "")
        self.assertTrue(all("ERR_CONNECTION_REFUSED" in complaint for complaint in self.browser.complaints()))


if __name__ == "__main__":
    if missing := webdriver.missing():
        print(f"page_test.py: SKIPPED: {' and '.join(missing)} not installed (deploy/install_deps.sh --tests)", file=sys.stderr)
        sys.exit(1 if os.environ.get("CI") == "true" else SKIPPED)
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
