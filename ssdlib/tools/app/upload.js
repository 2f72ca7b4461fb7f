/* Gradio's upload box has another input each time it changes, and loses files that are chosen or dropped at that
   moment. Here one input stays, whatever the box shows; it hands on what has come when the box is ready. */
() => {
  const box = document.getElementById('ssd-upload');
  const first = box?.querySelector('.upload-container input[type=file]');
  if (!first) return;
  const input = Object.assign(document.createElement('input'), {type: 'file', multiple: true, accept: first.accept});
  input.style.display = 'none';
  input.setAttribute('aria-label', 'Field images');
  const theirs = new WeakMap();
  const waiting = [];
  // Gradio refuses all files of a drop for one that is too large: such go by themselves.
  const most = window.gradio_config?.max_file_size ?? Infinity;
  const bring = (files) => {
    const [large, others] = [true, false].map((is) => Array.from(files).filter((file) => file.size > most === is));
    waiting.push(...[others, large].filter((some) => some.length));
  };
  const take = () => {
    for (const one of box.querySelectorAll('input[type=file]')) {
      if (one === input) continue;
      theirs.set(one.parentElement, one);
      one.remove();
    }
  };
  const ready = () => box.querySelector('.upload-container[aria-dropeffect]:not(.icon-mode)');
  const handOn = () => {
    const target = theirs.get(ready());
    if (!waiting.length || !target) return;
    const files = new DataTransfer();
    waiting.shift().forEach((file) => files.items.add(file));
    target.files = files.files;
    target.dispatchEvent(new Event('change'));
  };
  input.addEventListener('change', () => { bring(input.files); input.value = ''; });
  box.addEventListener('click', (event) => {
    if (!ready()?.contains(event.target)) return;
    event.stopImmediatePropagation();
    input.click();
  }, true);
  box.addEventListener('dragover', (event) => event.preventDefault(), true);
  box.addEventListener('drop', (event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    bring(event.dataTransfer.files);
    ready()?.dispatchEvent(new DragEvent('dragleave'));
  }, true);
  box.append(input);
  take();
  new MutationObserver(take).observe(box, {childList: true, subtree: true});
  setInterval(handOn, 100);
}
