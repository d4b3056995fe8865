// Lets the search work from file://, where browsers refuse to start a Worker: the worker's script
// runs in a hidden frame instead. Written for this project; the site loads nothing from a network.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const source = new URL(url, document.baseURI).href;
      this.queue = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc =
        "<script>" +
        "window.importScripts = (...urls) => urls.reduce((before, url) => before.then(() =>" +
        "  new Promise((done, failed) => document.head.appendChild(Object.assign(" +
        "    document.createElement('script'), {src: url, onload: done, onerror: failed})))), Promise.resolve());" +
        "window.postMessage = (data) => parent.dispatchEvent(" +
        "  new MessageEvent('message', {data, source: window}));" +
        "</" + "script><script src='" + source + "'></" + "script>";
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      this.frame.addEventListener("load", () => {
        this.queue.forEach((data) => this.deliver(data));
        this.queue = null;
      });
      document.body.appendChild(this.frame);
    }
    postMessage(data) {
      if (this.queue) this.queue.push(data);
      else this.deliver(data);
    }
    deliver(data) {
      const inside = this.frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
