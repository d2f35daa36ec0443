// Curves over time, one colour per student, with a line where a prompt or a video began.

const SPAN = 120; // seconds shown
const NAMES = {
  saturation: "Saturation, 0 to 1", sharpness: "Sharpness, squared grey levels", good: "Oracle: frames that show the prompt, share",
  visible: "Oracle: frames with a shape, share", shape_right: "Oracle: right shape, share",
};

const brief = (value) => new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(value);

export function makeCharts(place, colours) {
  const curves = new Map(); // name -> { canvas, label, points: one list of [seconds, value] per student }

  function curve(name) {
    if (!curves.has(name)) {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const canvas = document.createElement("canvas");
      caption.textContent = NAMES[name] ?? name.replaceAll("_", " ");
      canvas.setAttribute("role", "img");
      figure.append(caption, canvas);
      place.append(figure);
      curves.set(name, { canvas, label: caption.textContent, points: colours.map(() => []) });
    }
    return curves.get(name);
  }

  function add(student, seconds, figures) {
    for (const [name, value] of Object.entries(figures)) {
      const points = curve(name).points[student];
      points.push([seconds, value]);
      while (points[0][0] < seconds - SPAN) points.shift();
    }
  }

  function draw(now, marks, names) {
    for (const { canvas, label, points } of curves.values()) {
      const seen = points.map((list) => list.filter(([seconds]) => seconds <= now && seconds >= now - SPAN));
      drawOne(canvas, seen, now, marks, colours);
      const last = seen.map((list, i) => list.length && `${names[i]} ${brief(list.at(-1)[1])}`).filter(Boolean);
      canvas.setAttribute("aria-label", `${label}: ${last.join(", ") || "nothing yet"}`);
    }
  }

  function clear() {
    place.replaceChildren();
    curves.clear();
  }

  return { add, draw, clear };
}

function drawOne(canvas, lists, now, marks, colours) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const values = lists.flat().map(([, value]) => value);
  if (!values.length) return;
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1e-6)];
  const from = Math.max(0, now - SPAN);
  const x = (seconds) => 34 + (width - 38) * (seconds - from) / Math.max(10, now - from);
  const y = (value) => height - 6 - (height - 18) * (value - low) / (high - low);
  context.fillStyle = style.getPropertyValue("--soft");
  context.font = "11px system-ui, sans-serif";
  context.fillText(brief(high), 0, y(high) + 4);
  context.fillText(brief(low), 0, y(low));
  context.strokeStyle = style.getPropertyValue("--rule");
  context.lineWidth = 1;
  for (const seconds of marks) {
    if (seconds < from || seconds > now) continue;
    context.beginPath();
    context.moveTo(x(seconds), 4);
    context.lineTo(x(seconds), height - 4);
    context.stroke();
  }
  lists.forEach((list, student) => {
    context.strokeStyle = style.getPropertyValue(colours[student]);
    context.lineWidth = 1.8;
    context.setLineDash([[], [6, 3], [2, 2], [8, 3, 2, 3]][student]);
    context.beginPath();
    list.forEach(([seconds, value], index) => context[index ? "lineTo" : "moveTo"](x(seconds), y(value)));
    context.stroke();
  });
  context.setLineDash([]);
}
