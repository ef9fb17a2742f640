// Search runs in a Worker, which browsers refuse to pages that were opened as files: there its
// script runs in a hidden frame. Zensical would load such a stand-in from unpkg.com; the name tells
// it that one is here already.
if (location.protocol === "file:") {
  // As postMessage does: a copy, and later, never within the sender's call.
  const deliver = (data, to) => {
    const copy = structuredClone(data);
    setTimeout(() => to()?.({ data: copy }));
  };

  window.Worker = class {
    constructor(url) {
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      // Some browsers have an empty frame at once, others replace it until it has loaded.
      this.frame.addEventListener("load", () => this.start(url), { once: true });
      document.body.append(this.frame);
    }

    start(url) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => deliver(data, () => this.onmessage);
      const script = inside.document.createElement("script");
      script.src = url;
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.postMessage(data));
      };
      inside.document.body.append(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else deliver(data, () => this.frame.contentWindow?.onmessage);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
