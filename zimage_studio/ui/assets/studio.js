// Ctrl or ⌘ + Enter generates, from wherever the focus is on the Generate tab.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const button = document.querySelector("#zs-generate");
  if (!button || button.offsetParent === null) return;
  event.preventDefault();
  event.stopPropagation();
  // Gradio takes over what was typed on "input"; the click waits for that to be done.
  setTimeout(() => button.click(), 50);
}, true);

// The drop zone of the Replay tab: Gradio names its button in English only, and its own filter for files would refuse
// in English too. So the name comes from the page, the filter is for the chooser only, and the server says no.
const nameDropZone = (event) => {
  const zone = event.target instanceof Element ? event.target.closest(".zs-drop") : null;
  if (!zone) return;
  zone.querySelector("#zs-drop button")?.setAttribute("aria-label", zone.querySelector(".zs-drop-words").textContent);
  zone.querySelector("#zs-drop input[type=file]")?.setAttribute("accept", ".png,.jpg,.jpeg,.webp");
};
for (const kind of ["focusin", "pointerover", "click"]) document.addEventListener(kind, nameDropZone, true);
