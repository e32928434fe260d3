for (const range of document.querySelectorAll(".stage input")) {
  range.addEventListener("input", () => range.parentElement.style.setProperty("--at", range.value + "%"));
}
const against = document.getElementById("against");
if (against) against.addEventListener("change", () => document.body.classList.toggle("with-rival", against.checked));
