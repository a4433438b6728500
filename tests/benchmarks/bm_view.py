"""Pictures a second of `thnerf view` while the track plays: bm_view.py SUBJECT [--browser] [--seconds N].

Without --browser: drawing, JPEG and all widgets, for a stand-in for a browser that runs elsewhere. With it: a headless Chromium on the same
cores, which draws its canvas in software; what counts then are the pictures sent.
"""

import argparse
import json
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np

from recon.subject import Subject
from thnerf.viewer.server import open_page


def stand_in():
    """A browser that takes every picture, encoded as viser encodes it."""
    from viser._image_encoding import cv2_imencode_with_fallback

    def take(picture, format, jpeg_quality):
        cv2_imencode_with_fallback(format, picture, jpeg_quality, "rgb")

    camera = SimpleNamespace(aspect=1.4, wxyz=np.array([1.0, 0, 0, 0]), position=np.zeros(3), fov=0.38)
    return SimpleNamespace(client_id=0, camera=camera, scene=SimpleNamespace(set_background_image=take))


def measure(page, seconds):
    """{view: pictures a second} of all views; the first second of each is not counted."""
    out = {}
    for view in page.pictures.views(page.session.track):
        page.view.value = view
        page.session.seek(0)
        page.session.play()
        time.sleep(8 if view.endswith("3D") else 2)  # colours and the carved volume are made once
        rates = []
        for _ in range(seconds):
            time.sleep(1)
            rates.append(page.rate)
        out[view] = round(float(np.median(rates)), 1)
    page.session.pause()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--seconds", type=int, default=6)
    arguments = parser.parse_args()
    with open_page(Subject.open(arguments.subject), port=0, device="cpu") as page:
        loop = threading.Thread(target=page.run)
        loop.start()
        try:
            if arguments.browser:
                from playwright.sync_api import sync_playwright

                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[
                        "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])
                    tab = browser.new_page(viewport={"width": 1280, "height": 720})
                    tab.goto(f"http://127.0.0.1:{page.server.get_port()}")
                    tab.get_by_text("jawOpen", exact=True).first.wait_for(timeout=60000)
                    result = measure(page, arguments.seconds)
                    browser.close()
            else:
                client = stand_in()
                page.server.get_clients = lambda: {0: client}
                time.sleep(1)
                result = measure(page, arguments.seconds)
        finally:
            page.stopped.set()
            loop.join()
    camera = page.session.track.camera
    print(json.dumps({"size": [camera.width, camera.height], "track_fps": page.session.track.fps, "browser": arguments.browser, "pictures_per_second": result}))


if __name__ == "__main__":
    main()
