// Ctrl or ⌘ + Enter presses the main button, from wherever the focus is on the Generate or the Refine tab.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const button = [...document.querySelectorAll("#zs-generate, #zs-make")].find((one) => one.offsetParent !== null);
  if (!button) return;
  event.preventDefault();
  event.stopPropagation();
  // Gradio takes over what was typed on "input"; the click waits for that to be done.
  setTimeout(() => button.click(), 50);
}, true);

// Drop zones: Gradio names their button in English only, and its own filter for files would refuse in English too.
// So the name comes from the page, the filter is for the chooser only, and the server says no.
const nameDropZone = (event) => {
  const zone = event.target instanceof Element ? event.target.closest(".zs-drop") : null;
  if (!zone) return;
  zone.querySelector(".zs-drop-file button")?.setAttribute("aria-label", zone.querySelector(".zs-drop-words").textContent);
  zone.querySelector(".zs-drop-file input[type=file]")?.setAttribute("accept", ".png,.jpg,.jpeg,.webp");
};
for (const kind of ["focusin", "pointerover", "click"]) document.addEventListener(kind, nameDropZone, true);
