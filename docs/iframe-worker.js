// Browsers refuse workers for pages opened from a folder (file://). There, run the search worker in a hidden iframe instead.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement("iframe")
    frame.hidden = true
    document.body.appendChild(frame)
    this.frame = frame.contentWindow
    this.frame.IFrameWorker = IFrameWorker
    this.frame.importScripts = (...urls) =>
      urls.reduce((before, next) => before.then(() => this.load(next)), Promise.resolve())
    this.frame.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
    this.ready = this.load(url)
  }

  load(url) {
    return new Promise((resolve, reject) => {
      const script = this.frame.document.createElement("script")
      script.src = new URL(url, location).href
      script.onload = resolve
      script.onerror = reject
      this.frame.document.body.appendChild(script)
    })
  }

  postMessage(data) {
    this.ready.then(() => this.frame.dispatchEvent(new MessageEvent("message", { data })))
  }

  terminate() {}
}

window.IFrameWorker = IFrameWorker
if (location.protocol === "file:") window.Worker = IFrameWorker
