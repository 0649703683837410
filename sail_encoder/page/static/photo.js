// A click chooses the patch under it, the arrow keys the patches beside the chosen one.
element.tabIndex = 0;
element.setAttribute("role", "application");
element.setAttribute("aria-label", "Photograph: choose a patch with a click or the arrow keys");
element.addEventListener("click", (event) => {
  const box = element.querySelector("img").getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width;
  const y = (event.clientY - box.top) / box.height;
  if (x >= 0 && x < 1 && y >= 0 && y < 1) trigger("click", { x: x, y: y });
});
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
element.addEventListener("keydown", (event) => {
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  trigger("click", { rows: step[0], columns: step[1] });
});
