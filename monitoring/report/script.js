for (const chart of document.querySelectorAll(".chart")) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector("svg"), tip = chart.querySelector(".tip"), pointer = chart.querySelector(".pointer");
  const short = v => v === null ? "–" : Math.abs(v) >= 1e4 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(2) : +v.toPrecision(4);
  chart.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const share = Math.min(1, Math.max(0, (x - data.left) / (data.right - data.left))), step = data.first + share * (data.last - data.first);
    const at = data.left + share * (data.right - data.left); pointer.setAttribute("x1", at); pointer.setAttribute("x2", at);
    tip.replaceChildren(`step ${Math.round(step)}`);
    for (const [name, colour, steps, values] of data.curves) {
      let best = 0; for (let i = 1; i < steps.length; i++) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
      const line = document.createElement("div"), dot = document.createElement("i"); dot.style.background = colour;
      line.append(dot, `${name || "value"} ${short(values[best])}`); tip.append(line);
    }
    const left = at / svg.viewBox.baseVal.width * box.width; tip.style.left = left > box.width / 2 ? "" : `${left + 10}px`; tip.style.right = left > box.width / 2 ? `${box.width - left + 10}px` : "";
  });
}
