const rows = [...document.querySelectorAll('#history tbody tr')], heads = [...document.querySelectorAll('#history th')];
const boxes = [...document.querySelectorAll('.filter')], search = document.getElementById('text');
const column = Object.fromEntries(heads.map((head, i) => [head.textContent, i]));
function show() {
  const text = search.value.toLowerCase();
  const fits = row => row.textContent.toLowerCase().includes(text)
    && boxes.every(box => !box.value || row.cells[column[box.dataset.column]].textContent === box.value);
  rows.forEach(row => { row.hidden = !fits(row); });
  document.getElementById('count').textContent = rows.filter(row => !row.hidden).length + ' of ' + rows.length;
}
boxes.forEach(box => {
  const i = column[box.dataset.column];
  [...new Set(rows.map(row => row.cells[i].textContent))].sort().forEach(value => box.add(new Option(value, value)));
  box.onchange = show;
});
search.oninput = show;
show();
