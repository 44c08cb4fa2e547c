const dark = matchMedia('(prefers-color-scheme:dark)');
const loaded = (async () => {
  const packed = Uint8Array.from(atob(document.getElementById('plotly').textContent.trim()), c => c.charCodeAt(0));
  const script = document.createElement('script');
  script.text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
  document.head.append(script);
})();
async function draw(div) {
  await loaded;
  const figure = FIGURES[div.id], own = figure.layout, small = innerWidth < 640;
  const grid = dark.matches ? '#2b323a' : '#e3e7eb';
  const axis = {gridcolor: grid, zerolinecolor: grid, automargin: true};
  const shown = small ? figure.data.filter(t => t.visible !== 'legendonly') : figure.data;
  const data = shown.map(t => t.meta ? {...t, x: DATES[t.meta]} : t);
  const layout = {
    height: small ? 360 : 420, margin: {l: small ? 44 : 60, r: 10, t: 16, b: 36}, colorway: PALETTE,
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: dark.matches ? '#c9d1d9' : '#3d444d', size: small ? 11 : 12},
    hovermode: 'x unified', legend: {orientation: 'h', y: -0.18}, ...own,
    xaxis: {...axis, ...own.xaxis}, yaxis: {...axis, ...own.yaxis},
  };
  div.style.minHeight = 0;
  Plotly.react(div, data, layout, {responsive: true, displayModeBar: false});
}
const divs = [...document.querySelectorAll('.figure')];
const seen = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
}), {rootMargin: '600px'});
divs.forEach(div => seen.observe(div));
dark.addEventListener('change', () => divs.filter(div => div.data).forEach(draw));
