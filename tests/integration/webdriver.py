"""A headless Chromium, driven over WebDriver (https://www.w3.org/TR/webdriver2/) with Python's standard library."""
import base64
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's reference
_QUIET = ["disable-background-networking", "disable-component-update", "disable-sync", "disable-quic", "no-first-run"]


def missing():
    """Programs that are not installed."""
    return [program for program in (CHROMIUM, CHROMEDRIVER) if not pathlib.Path(program).exists()]


class Browser:
    def __init__(self, width=1100, height=900, arguments=()):
        self._profile = tempfile.mkdtemp(prefix="millrace-chromium-")
        self._driver = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self._driver.stdout:
            started = re.search(r"successfully on port (\d+)", line)
            if started:
                break
        self._url = f"http://127.0.0.1:{started[1]}/session"
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *_QUIET,
                 f"window-size={width},{height}", f"user-data-dir={self._profile}", *arguments]
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": CHROMIUM, "args": ["--" + flag for flag in flags]}}}})
        self._url += "/" + session["sessionId"]

    def close(self):
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()
            shutil.rmtree(self._profile, ignore_errors=True)

    def _call(self, method, path, body=None):
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, url):
        self._call("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.textContent", selector)

    def _element(self, selector):
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector):
        self._call("POST", f"/element/{self._element(selector)}/click")

    def role_and_name(self, selector):
        """As assistive technology gets them."""
        element = self._element(selector)
        return tuple(self._call("GET", f"/element/{element}/computed{what}") for what in ("role", "label"))

    def keys(self, *keys):
        """Presses and releases each, to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def draw(self, selector, points, pointer="mouse"):
        """A stroke through points of [0, 1] x [0, 1] on an element."""
        left, top, width, height = self.run("const box = document.querySelector(arguments[0]).getBoundingClientRect();"
                                            "return [box.left, box.top, box.width, box.height]", selector)
        moves = [{"type": "pointerMove", "duration": 20, "x": round(left + x * width), "y": round(top + y * height)}
                 for x, y in points]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        self._call("POST", "/actions", {"actions": [
            {"type": "pointer", "id": pointer, "parameters": {"pointerType": pointer}, "actions": actions}]})

    def complaints(self):
        """The errors in the console since the last time."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})
                if entry["level"] == "SEVERE"]

    def devtools(self, command, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path):
        pathlib.Path(path).write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
